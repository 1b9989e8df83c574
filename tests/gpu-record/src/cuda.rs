//! The few calls of NVIDIA's driver API that a load takes, and the only unsafe code here.
//!
//! `libcuda.so.1` is part of the driver, as NVML is; it compiles the kernel for the GPU that is
//! there. Symbols are versioned by name and never change their layout, so the old names are asked
//! for: every driver since R450 exports them.

#![expect(
    unsafe_code,
    reason = "foreign functions behind the CUDA driver's published ABI; each call says why it is sound"
)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

use libloading::Library;

/// The driver's library.
pub const SONAME: &str = "libcuda.so.1";

/// The kernel: one thread that watches the clock until so many cycles have passed.
const SPIN: &str = r"
.visible .entry spin(.param .u64 cycles)
{
    .reg .pred %more;
    .reg .u64 %begin, %now, %passed, %limit;
    ld.param.u64 %limit, [cycles];
    mov.u64 %begin, %clock64;
again:
    mov.u64 %now, %clock64;
    sub.u64 %passed, %now, %begin;
    setp.lt.u64 %more, %passed, %limit;
    @%more bra again;
    ret;
}
";
/// Language version and oldest GPU, most widely understood first. The later ones are for a driver
/// that no longer compiles for GPUs of the first's age.
const TARGETS: [(&str, &str); 3] = [("6.0", "sm_50"), ("6.3", "sm_75"), ("7.8", "sm_90")];
/// Codes by which a driver says that it does not compile such text: no binary for this GPU, invalid
/// PTX, unsupported PTX version.
const NOT_COMPILED: [c_int; 3] = [209, 218, 222];

type Code = c_int;
type DeviceOrdinal = c_int;
type Opaque = *mut c_void;
type Address = u64;

/// What can fail.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error("cannot load {SONAME}")]
    Library(#[source] libloading::Error),
    /// The library lacks a function.
    #[error("{SONAME} has no {name}")]
    Symbol {
        /// The function.
        name: &'static str,
        /// What the loader said.
        source: libloading::Error,
    },
    /// A call was refused.
    #[error("{call} failed: {name} ({code})")]
    Call {
        /// The function.
        call: &'static str,
        /// CUDA's number for the reason.
        code: i32,
        /// CUDA's name for it; `unknown` where it has none.
        name: String,
    },
    /// There is no such GPU.
    #[error("gpu {found} does not exist: CUDA shows {count}")]
    NoSuchGpu {
        /// What was asked for.
        found: u32,
        /// How many there are.
        count: i32,
    },
}

/// Declares the functions that are used, and looks them all up.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*);)*) => {
        #[expect(non_snake_case, reason = "CUDA's own names")]
        #[derive(Debug)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Functions {
            fn of(library: &Library) -> Result<Self, CudaError> {
                Ok(Self {
                    $($name: {
                        let name = stringify!($name);
                        // SAFETY: the type is what cuda.h declares for this name, whose layout
                        // never changes. The pointer is kept beside the library it came from.
                        let found = unsafe { library.get(name.as_bytes()) };
                        *found.map_err(|source| CudaError::Symbol { name, source })?
                    },)*
                })
            }
        }
    };
}

functions! {
    cuInit: fn(c_uint);
    cuGetErrorName: fn(Code, *mut *const c_char);
    cuDeviceGetCount: fn(*mut c_int);
    cuDeviceGet: fn(*mut DeviceOrdinal, c_int);
    cuDeviceGetUuid: fn(*mut [u8; 16], DeviceOrdinal);
    cuDevicePrimaryCtxRetain: fn(*mut Opaque, DeviceOrdinal);
    cuCtxSetCurrent: fn(Opaque);
    cuCtxSynchronize: fn();
    cuModuleLoadData: fn(*mut Opaque, *const c_void);
    cuModuleGetFunction: fn(*mut Opaque, Opaque, *const c_char);
    cuMemAlloc_v2: fn(*mut Address, usize);
    cuMemsetD8_v2: fn(Address, u8, usize);
    cuLaunchKernel: fn(
        Opaque, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Opaque,
        *mut *mut c_void, *mut *mut c_void
    );
}

/// A GPU with a context of this process, current on the thread that opened it, and the kernel
/// loaded. What it holds ends with the process, as a job's does.
#[derive(Debug)]
pub struct Gpu {
    functions: Functions,
    device: DeviceOrdinal,
    spin: Opaque,
    /// Last, so that nothing above outlives the code it points to.
    _library: Library,
}

impl Gpu {
    /// Takes a context on the GPU with this index, in CUDA's order.
    pub fn open(index: u32) -> Result<Self, CudaError> {
        // SAFETY: loading runs the initialisers of NVIDIA's driver library, which every CUDA program
        // does; nothing else of that name is in a loader's path.
        let library = unsafe { Library::new(SONAME) }.map_err(CudaError::Library)?;
        let functions = Functions::of(&library)?;
        // SAFETY: takes no pointer; zero is the only flag that exists.
        let code = unsafe { (functions.cuInit)(0) };
        functions.check("cuInit", code)?;
        let device = functions.device(index)?;
        let mut context = ptr::null_mut();
        // SAFETY: `context` outlives the call, and the device is one that CUDA gave.
        let code = unsafe { (functions.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        functions.check("cuDevicePrimaryCtxRetain", code)?;
        // SAFETY: the context was just retained, and is never released.
        let code = unsafe { (functions.cuCtxSetCurrent)(context) };
        functions.check("cuCtxSetCurrent", code)?;
        let spin = functions.kernel()?;
        Ok(Self {
            functions,
            device,
            spin,
            _library: library,
        })
    }

    /// The GPU's identity, written as NVML writes it.
    pub fn uuid(&self) -> Result<String, CudaError> {
        let mut bytes = [0_u8; 16];
        // SAFETY: CUuuid is 16 bytes, which outlive the call.
        let code = unsafe { (self.functions.cuDeviceGetUuid)(&raw mut bytes, self.device) };
        self.functions.check("cuDeviceGetUuid", code)?;
        Ok(uuid_text(bytes))
    }

    /// Takes so much of the GPU's memory, and touches it. It is kept until the process ends.
    pub fn allocate(&self, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let mut address = 0;
        // SAFETY: `address` outlives the call; a context is current.
        let code = unsafe { (self.functions.cuMemAlloc_v2)(&raw mut address, bytes) };
        self.functions.check("cuMemAlloc_v2", code)?;
        // SAFETY: the range was just allocated, whole.
        let code = unsafe { (self.functions.cuMemsetD8_v2)(address, 0, bytes) };
        self.functions.check("cuMemsetD8_v2", code)?;
        self.wait()
    }

    /// Keeps the GPU busy for so many of its clock's cycles, and returns when it is done.
    pub fn spin(&self, cycles: u64) -> Result<(), CudaError> {
        let mut cycles = cycles;
        let mut arguments = [(&raw mut cycles).cast::<c_void>()];
        // SAFETY: the kernel takes one 64-bit parameter, to which `arguments` points; CUDA copies it
        // before the call returns. The function is of the module in the current context, and the
        // null stream is always there.
        let code = unsafe {
            (self.functions.cuLaunchKernel)(
                self.spin,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                ptr::null_mut(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.functions.check("cuLaunchKernel", code)?;
        self.wait()
    }

    fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: takes no pointer; a context is current.
        let code = unsafe { (self.functions.cuCtxSynchronize)() };
        self.functions.check("cuCtxSynchronize", code)
    }
}

impl Functions {
    fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut name = ptr::null();
        // SAFETY: `name` outlives the call; CUDA sets it to a string of its own or to null.
        let known = unsafe { (self.cuGetErrorName)(code, &raw mut name) } == 0 && !name.is_null();
        let name = if known {
            // SAFETY: it is a string constant of the library, which is still loaded.
            unsafe { CStr::from_ptr(name) }
                .to_string_lossy()
                .into_owned()
        } else {
            "unknown".to_owned()
        };
        Err(CudaError::Call { call, code, name })
    }

    fn device(&self, index: u32) -> Result<DeviceOrdinal, CudaError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        let code = unsafe { (self.cuDeviceGetCount)(&raw mut count) };
        self.check("cuDeviceGetCount", code)?;
        let none = CudaError::NoSuchGpu {
            found: index,
            count,
        };
        let Some(ordinal) = c_int::try_from(index).ok().filter(|index| *index < count) else {
            return Err(none);
        };
        let mut device = 0;
        // SAFETY: `device` outlives the call.
        let code = unsafe { (self.cuDeviceGet)(&raw mut device, ordinal) };
        self.check("cuDeviceGet", code)?;
        Ok(device)
    }

    fn kernel(&self) -> Result<Opaque, CudaError> {
        let mut outcome = Ok(ptr::null_mut());
        for (version, target) in TARGETS {
            outcome = self.module(&kernel_text(version, target));
            match &outcome {
                Err(CudaError::Call { code, .. }) if NOT_COMPILED.contains(code) => {}
                _ => break,
            }
        }
        let module = outcome?;
        let mut function = ptr::null_mut();
        let name = c"spin";
        // SAFETY: `function` and the name outlive the call; the module is loaded and stays so.
        let code = unsafe { (self.cuModuleGetFunction)(&raw mut function, module, name.as_ptr()) };
        self.check("cuModuleGetFunction", code)?;
        Ok(function)
    }

    fn module(&self, text: &str) -> Result<Opaque, CudaError> {
        let mut module = ptr::null_mut();
        // SAFETY: `module` outlives the call; the text ends with a zero byte, which is how CUDA
        // knows where PTX ends.
        let code = unsafe { (self.cuModuleLoadData)(&raw mut module, text.as_ptr().cast()) };
        self.check("cuModuleLoadData", code)?;
        Ok(module)
    }
}

/// The kernel in PTX, ended by a zero byte.
fn kernel_text(version: &str, target: &str) -> String {
    format!(".version {version}\n.target {target}\n.address_size 64\n{SPIN}\0")
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = "GPU".to_owned();
    for (index, byte) in bytes.into_iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let bytes = std::array::from_fn(|index| u8::try_from(index * 17).unwrap());
        assert_eq!(uuid_text(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn the_kernel_ends_where_cuda_looks_for_its_end() {
        for (version, target) in TARGETS {
            let text = kernel_text(version, target);
            assert!(text.starts_with(&format!(".version {version}\n.target {target}\n")));
            assert!(CStr::from_bytes_with_nul(text.as_bytes()).is_ok());
        }
    }
}
