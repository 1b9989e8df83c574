//! The simulated NVML, as driver R550 would export it.

use sim_nvml::abi::symbols::types::*;

sim_nvml::export_init!(sim_nvml::abi::Profile {
    driver: "550.163.01",
    nvml: "12.550.163.01",
    cuda: 12040,
    utilization_capacity: 4096,
    newest_field: 227,
    translates_lists: true,
    translates_utilization: false,
});

sim_nvml::symbols_r470!(sim_nvml::export);
sim_nvml::symbols_r510!(sim_nvml::export);
sim_nvml::symbols_r550!(sim_nvml::export);
