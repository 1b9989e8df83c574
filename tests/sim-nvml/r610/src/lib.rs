//! The simulated NVML, as driver R610 would export it.

use sim_nvml::abi::symbols::types::*;

sim_nvml::export_init!(sim_nvml::abi::Profile {
    driver: "610.57.04",
    nvml: "13.610.57.04",
    cuda: 13030,
    utilization_capacity: 4096,
    newest_field: 273,
    translates_lists: true,
    translates_utilization: true,
});

sim_nvml::symbols_r470!(sim_nvml::export);
sim_nvml::symbols_r510!(sim_nvml::export);
sim_nvml::symbols_r550!(sim_nvml::export);
sim_nvml::symbols_r610!(sim_nvml::export);
