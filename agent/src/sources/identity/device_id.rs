//! Which device an id means: the names under which device plugins and DRA drivers give GPUs away.
//!
//! A pure function from text to [`DeviceRef`]. It knows what NVIDIA's device plugin, its DRA driver,
//! its CDI specifications and Google's device plugin write. It refuses to guess: an id that none of
//! them writes refers to nothing, and a bare number is an index only where the resource cannot be
//! anything but a GPU, since plugins of network cards number theirs, too.

use crate::core::input::DeviceRef;
use crate::core::model::GpuUuid;

/// Where an id comes from: the same text means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A device plugin's, of a resource that is GPUs for certain.
    Gpus,
    /// A device plugin's, of a resource that may be GPUs.
    MaybeGpus,
    /// A DRA driver's name of a device.
    Dra,
}

/// The device that an id means. `None` if the id does not say.
pub(super) fn device_ref(id: &str, origin: Origin) -> Option<DeviceRef> {
    if let Some((kind, name)) = id.split_once('=') {
        return cdi(kind, name);
    }
    let name = without_replica(id)?;
    by_uuid(name).or_else(|| match origin {
        Origin::Gpus => by_index(name).or_else(|| by_file(name)),
        Origin::MaybeGpus => by_file(name),
        Origin::Dra => by_dra_name(name),
    })
}

/// Whether a device of this kind, `vendor/class`, can be a GPU of NVIDIA's.
pub(super) fn is_nvidia_kind(kind: &str) -> bool {
    kind.split_once('/').is_some_and(|(vendor, class)| {
        matches!(
            (vendor, class),
            ("nvidia.com", "gpu" | "mig") | ("k8s.gpu.nvidia.com", "gpu" | "device" | "claim")
        )
    })
}

/// A fully qualified CDI device: `vendor/class=name`.
fn cdi(kind: &str, name: &str) -> Option<DeviceRef> {
    if !is_nvidia_kind(kind) {
        return None;
    }
    let name = match kind {
        // `<the claim's uid>-<the device>`.
        "k8s.gpu.nvidia.com/claim" => after_uuid(name)?,
        _ => name,
    };
    if name == "all" {
        return Some(DeviceRef::All);
    }
    let by_number = match kind.starts_with("k8s.") {
        true => by_dra_name(name),
        // By the naming strategies `index` and `type-index`.
        false => by_index(name).or_else(|| {
            let number = name.strip_prefix("gpu").or(name.strip_prefix("mig"))?;
            let index = by_index(number)?;
            let is_mig = matches!(index, DeviceRef::MigIndex { .. });
            (is_mig == name.starts_with("mig")).then_some(index)
        }),
    };
    by_uuid(name).or(by_number)
}

/// A shared GPU is given away several times, as `<id>::<number>`.
fn without_replica(id: &str) -> Option<&str> {
    match id.split_once("::") {
        None => Some(id),
        Some((id, replica)) => number(replica).map(|_| id),
    }
}

/// `GPU-<uuid>`, `MIG-<uuid>`, or `MIG-GPU-<uuid>/<gpu instance>/<compute instance>`.
fn by_uuid(name: &str) -> Option<DeviceRef> {
    if let Some(rest) = name.strip_prefix("MIG-GPU-") {
        let mut parts = rest.split('/');
        let (uuid, gpu_instance, compute_instance) = (parts.next()?, parts.next()?, parts.next()?);
        return (is_uuid(uuid) && parts.next().is_none()).then_some(DeviceRef::MigOf {
            gpu: uuid_of("GPU", uuid),
            gpu_instance: number(gpu_instance)?,
            compute_instance: number(compute_instance)?,
        });
    }
    let (kind, uuid) = name.split_once('-')?;
    (matches!(kind, "GPU" | "MIG") && is_uuid(uuid)).then(|| DeviceRef::Uuid(uuid_of(kind, uuid)))
}

/// NVML's index: `0`, or `0:1` for the second instance of the first GPU.
fn by_index(name: &str) -> Option<DeviceRef> {
    match name.split_once(':') {
        None => number(name).map(DeviceRef::Index),
        Some((gpu, instance)) => Some(DeviceRef::MigIndex {
            gpu: number(gpu)?,
            instance: number(instance)?,
        }),
    }
}

/// As Google's device plugin has it: `nvidia0`, and `nvidia0/vgpu3` where it is shared. What it
/// calls a MIG instance, `nvidia0/gi1`, cannot be known from here.
fn by_file(name: &str) -> Option<DeviceRef> {
    let rest = name.strip_prefix("nvidia")?;
    let minor = match rest.split_once('/') {
        None => rest,
        Some((minor, share)) => {
            number(share.strip_prefix("vgpu")?)?;
            minor
        }
    };
    number(minor).map(DeviceRef::Minor)
}

/// As NVIDIA's DRA driver has it: `gpu-0`, by the number of the device file. A MIG instance is named
/// by its place on the GPU, `gpu-0-mig-19-0-1`, which says nothing without the driver.
fn by_dra_name(name: &str) -> Option<DeviceRef> {
    number(name.strip_prefix("gpu-")?).map(DeviceRef::Minor)
}

/// What follows a UUID and a dash.
fn after_uuid(text: &str) -> Option<&str> {
    let (uuid, rest) = text.split_at_checked(36)?;
    is_uuid(uuid).then(|| rest.strip_prefix('-'))?
}

/// Eight, four, four, four and twelve hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// As NVML writes it.
fn uuid_of(kind: &str, uuid: &str) -> GpuUuid {
    GpuUuid::from(&*format!("{kind}-{}", uuid.to_ascii_lowercase()))
}

/// Digits alone: `+1` is a number for Rust and nobody else.
fn number(text: &str) -> Option<u32> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "7c8e1f02-9a4b-4d5e-8f60-112233445566";

    #[test]
    fn every_name_that_is_known_to_be_given_means_one_device() {
        use DeviceRef::{All, Index, Minor};
        let gpu = || Some(DeviceRef::Uuid(uuid_of("GPU", UUID)));
        let mig = || Some(DeviceRef::Uuid(uuid_of("MIG", UUID)));
        let old = Some(DeviceRef::MigOf {
            gpu: uuid_of("GPU", UUID),
            gpu_instance: 7,
            compute_instance: 0,
        });
        let second = |gpu| Some(DeviceRef::MigIndex { gpu, instance: 1 });
        let (plugin, maybe, dra) = (Origin::Gpus, Origin::MaybeGpus, Origin::Dra);
        let rows: &[(&str, Origin, Option<DeviceRef>)] = &[
            // NVIDIA's device plugin: whole, shared in time or by MPS, MIG, shared MIG.
            ("GPU-@", plugin, gpu()),
            ("GPU-@", maybe, gpu()),
            ("GPU-@::3", plugin, gpu()),
            ("MIG-@", plugin, mig()),
            ("MIG-@::12", maybe, mig()),
            ("MIG-GPU-@/7/0", plugin, old.clone()),
            ("MIG-GPU-@/7/0::1", plugin, old),
            // By index, where the resource is GPUs for certain.
            ("0", plugin, Some(Index(0))),
            ("7::1", plugin, Some(Index(7))),
            ("0:1", plugin, second(0)),
            ("0", maybe, None),
            ("0:1", maybe, None),
            ("0", dra, None),
            // Google's.
            ("nvidia0", plugin, Some(Minor(0))),
            ("nvidia12/vgpu3", maybe, Some(Minor(12))),
            ("nvidia0/gi1", plugin, None),
            ("nvidia0/gi1/vgpu0", plugin, None),
            ("nvidia", plugin, None),
            // CDI, by every naming strategy of the toolkit.
            ("nvidia.com/gpu=GPU-@", maybe, gpu()),
            ("nvidia.com/gpu=MIG-@", dra, mig()),
            ("nvidia.com/gpu=0", maybe, Some(Index(0))),
            ("nvidia.com/gpu=2:1", maybe, second(2)),
            ("nvidia.com/gpu=gpu3", plugin, Some(Index(3))),
            ("nvidia.com/gpu=mig3:1", plugin, second(3)),
            ("nvidia.com/gpu=mig3", plugin, None),
            ("nvidia.com/gpu=gpu3:1", plugin, None),
            ("nvidia.com/mig=2:1", plugin, second(2)),
            ("nvidia.com/gpu=all", plugin, Some(All)),
            ("all", plugin, None),
            ("nvidia.com/gds=all", plugin, None),
            ("example.com/gpu=0", plugin, None),
            // NVIDIA's DRA driver.
            ("gpu-0", dra, Some(Minor(0))),
            ("gpu-0", plugin, None),
            ("gpu-0-mig-19-0-1", dra, None),
            ("gpu-vfio-0", dra, None),
            ("k8s.gpu.nvidia.com/device=gpu-1", dra, Some(Minor(1))),
            ("k8s.gpu.nvidia.com/gpu=GPU-@", dra, gpu()),
            ("k8s.gpu.nvidia.com/claim=@-gpu-1", dra, Some(Minor(1))),
            ("k8s.gpu.nvidia.com/claim=gpu-1", dra, None),
            ("k8s.compute-domain.nvidia.com/claim=@-channel-0", dra, None),
            // Others, and damage.
            ("", plugin, None),
            ("GPU-", plugin, None),
            ("GPU-@::", plugin, None),
            ("GPU-@::x", plugin, None),
            ("GPU-@/1", plugin, None),
            ("MIG-GPU-@", plugin, None),
            ("MIG-GPU-@/7/0/1", plugin, None),
            ("AMD-@", plugin, None),
            ("0000:3b:00.0", plugin, None),
            ("0000:3b:00.0", maybe, None),
            ("+1", plugin, None),
            ("4294967296", plugin, None),
            ("=", plugin, None),
        ];
        for (id, origin, expect) in rows {
            let id = id.replace('@', UUID);
            assert_eq!(device_ref(&id, *origin), *expect, "{id} of {origin:?}");
        }
    }

    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let id = format!("GPU-{}", UUID.to_uppercase());
        let expect = DeviceRef::Uuid(uuid_of("GPU", UUID));
        assert_eq!(device_ref(&id, Origin::MaybeGpus), Some(expect));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_only_known_shapes_mean_something(id in "\\PC{0,80}") {
            for origin in [Origin::Gpus, Origin::MaybeGpus, Origin::Dra] {
                if let Some(found) = device_ref(&id, origin) {
                    prop_assert!(id.bytes().any(|byte| byte.is_ascii_digit())
                        || found == DeviceRef::All, "{}", id);
                }
            }
        }
    }
}
