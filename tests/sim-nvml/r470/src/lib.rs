//! The simulated NVML, as driver R470 would export it.

use sim_nvml::abi::symbols::types::*;

sim_nvml::export_init!(sim_nvml::abi::Profile {
    driver: "470.256.02",
    nvml: "11.470.256.02",
    cuda: 11040,
    utilization_capacity: 100,
    newest_field: 145,
    translates_lists: false,
    translates_utilization: false,
});

sim_nvml::symbols_r470!(sim_nvml::export);
