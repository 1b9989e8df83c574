//! Coming and going of the library: alone in its process, because NVML's initialisation is global.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::NvmlLib;
use sim_nvml::library::{self, Driver};
use sim_nvml::{Fault, GpuSpec, Scenario};

#[test]
fn init_fails_until_there_is_a_driver_and_counts_its_users() {
    let dir = tempfile::tempdir().unwrap();
    let library = library::install(Driver::R550, &dir.path().join("lib")).unwrap();
    let state = dir.path().join("state");
    // SAFETY: this is the only test of its process, and no other thread has been started.
    unsafe { std::env::set_var(sim_nvml::STATE_DIR, &state) };
    let init = || Nvml::builder().lib_path(library.as_os_str()).init();

    assert!(
        matches!(init(), Err(NvmlError::DriverNotLoaded)),
        "no state directory"
    );
    let scenario = Scenario::create(&state, vec![GpuSpec::a100(0)], 1).unwrap();
    assert!(matches!(
        Scenario::create(&state, vec![], 1),
        Err(sim_nvml::StateError::Exists(_))
    ));
    let fault = scenario.inject(None, Fault::no_driver()).unwrap();
    assert!(matches!(init(), Err(NvmlError::DriverNotLoaded)));
    assert!(matches!(init(), Err(NvmlError::DriverNotLoaded)));
    scenario.clear(fault).unwrap();
    let other = Fault::Fail {
        call: "nvmlInit".to_owned(),
        code: 28,
    };
    let fault = scenario.inject(None, other).unwrap();
    assert!(matches!(init(), Err(NvmlError::UnexpectedVariant(28))));
    scenario.clear(fault).unwrap();
    assert_eq!(init().unwrap().device_count().unwrap(), 1);

    // SAFETY: the simulated library has no initialisers.
    let lib = unsafe { NvmlLib::new(&library) }.unwrap();
    let count = |lib: &NvmlLib| {
        let mut count = 0;
        // SAFETY: the pointer is valid.
        (unsafe { lib.nvmlDeviceGetCount_v2(&raw mut count) }, count)
    };
    assert_eq!(count(&lib), (1, 0), "uninitialised");
    // SAFETY: these take no pointers.
    unsafe {
        assert_eq!((lib.nvmlInit_v2(), lib.nvmlInitWithFlags(0)), (0, 0));
        assert_eq!(lib.nvmlShutdown(), 0);
        assert_eq!(count(&lib), (0, 1), "one user is left");
        assert_eq!(lib.nvmlShutdown(), 0);
        assert_eq!(count(&lib), (1, 0));
        assert_eq!(lib.nvmlShutdown(), 1);
    }
    drop(lib);
    for _ in 0..20 {
        assert_eq!(
            init().unwrap().device_count().unwrap(),
            1,
            "loaded and closed again and again"
        );
    }
}
