//! The packages of Debian 12 that are in the image: the C library, which NVIDIA's library wants, libgcc
//! for unwinding, the certificate authorities, and what says that this is a Debian.
//!
//! What dpkg would know of them is kept, so that scanners find them. What the agent does not need is
//! left out: documentation without copyrights, manuals, and the conversions of character sets. No script
//! of a package is run; the one that matters, which puts the authorities into one file, is a line here.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::layer::Layer;
use crate::archive::{self, Apt};
use crate::command::Cmd;
use crate::dist::{self, Arch};

const SUITE: &str = "bookworm";
const PACKAGES: [&str; 4] = ["base-files", "ca-certificates", "libc6", "libgcc-s1"];
/// Folders of the root that are links to those below `usr`, as on every Debian 12.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// What is left out, as beginnings of paths.
const LEFT_OUT: [&str; 6] = [
    "usr/share/man",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/aarch64-linux-gnu/gconv",
    "usr/share/base-files",
];
const AUTHORITIES: &str = "usr/share/ca-certificates/mozilla";
/// Where programs look for the authorities.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// The layer with the packages for a processor.
pub(crate) fn layer(arch: Arch, epoch: u64) -> Result<Vec<u8>> {
    let mut layer = Layer::new(epoch);
    for package in unpacked(arch)? {
        add_package(&mut layer, &package)?;
    }
    for name in MERGED {
        let below = Path::new("usr").join(name);
        layer.add_folder(&below);
        layer.add_link(Path::new(name), &below);
    }
    for folder in [
        "dev",
        "proc",
        "run",
        "sys",
        "tmp",
        "var/lib/gpuacct",
        "root",
    ] {
        layer.add_folder(Path::new(folder));
    }
    layer.add_link(Path::new("var/run"), Path::new("/run"));
    for (file, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\n"),
        ("etc/group", "root:x:0:\n"),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
        // NVIDIA's runtime has the cache of libraries made anew.
        ("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n"),
    ] {
        layer.add_file(Path::new(file), 0o644, text.into());
    }
    layer.finish()
}

/// The packages, each unpacked into a folder of its own, with dpkg's files in `DEBIAN`.
fn unpacked(arch: Arch) -> Result<Vec<PathBuf>> {
    let name = format!("debian-{SUITE}-image-{}", arch.name());
    let tree = archive::once(&name, |work| {
        let files = Apt::for_arch(SUITE, work, arch.name())?.download(&PACKAGES)?;
        let root = work.join("root");
        for file in files {
            let stem = file.file_name().unwrap_or_default().to_string_lossy();
            let package = stem.split('_').next().unwrap_or_default();
            Cmd::new("dpkg-deb")
                .arg("--raw-extract")
                .arg(&file)
                .arg(root.join(package))
                .run()?;
        }
        Ok(root)
    })?;
    let folders: Vec<PathBuf> = PACKAGES.iter().map(|name| tree.join(name)).collect();
    for folder in &folders {
        ensure!(
            folder.join("DEBIAN/control").is_file(),
            "{} is no package",
            folder.display()
        );
    }
    Ok(folders)
}

fn add_package(layer: &mut Layer, package: &Path) -> Result<()> {
    let name = package.file_name().context("a package has a name")?;
    let mut files = Vec::new();
    list(package, &mut files)?;
    let mut authorities = Vec::new();
    for file in files {
        let path = file.strip_prefix(package)?;
        if path.starts_with("DEBIAN") {
            continue;
        }
        let place = merged(path);
        let is_left_out = LEFT_OUT.iter().any(|start| place.starts_with(start));
        let is_doc = place.starts_with("usr/share/doc") && !place.ends_with("copyright");
        if is_left_out || is_doc {
            continue;
        }
        let about = fs::symlink_metadata(&file)
            .with_context(|| format!("cannot look at {}", file.display()))?;
        if about.is_symlink() {
            let target = fs::read_link(&file).context("a link names something")?;
            layer.add_link(&place, &target);
        } else {
            use std::os::unix::fs::PermissionsExt as _;
            let bytes = dist::read(&file)?;
            if place.starts_with(AUTHORITIES) {
                authorities.push(bytes.clone());
            }
            layer.add_file(&place, about.permissions().mode() & 0o777, bytes);
        }
    }
    if !authorities.is_empty() {
        layer.add_file(Path::new(BUNDLE), 0o644, authorities.concat());
    }
    // As in distroless images: scanners look for dpkg's status here if there is no dpkg.
    let known = Path::new("var/lib/dpkg/status.d").join(name);
    let control = dist::read(&package.join("DEBIAN/control"))?;
    let mut status = String::from_utf8(control).context("DEBIAN/control")?;
    if let Some((first, rest)) = status.split_once('\n') {
        status = format!("{first}\nStatus: install ok installed\n{rest}");
    }
    layer.add_file(&known, 0o644, status.into_bytes());
    let sums = package.join("DEBIAN/md5sums");
    if sums.is_file() {
        layer.add_file(&known.with_extension("md5sums"), 0o644, dist::read(&sums)?);
    }
    Ok(())
}

/// Everything below a folder that is no folder, in order.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in dist::entries(folder)? {
        if path.is_dir() && !path.is_symlink() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Where a path is once the root's folders are links to those below `usr`.
fn merged(path: &Path) -> PathBuf {
    let first = path.components().next();
    let is_merged = MERGED
        .iter()
        .any(|name| first == Some(Component::Normal(name.as_ref())));
    if is_merged {
        Path::new("usr").join(path)
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_root_are_below_usr() {
        for (path, expected) in [
            (
                "lib/x86_64-linux-gnu/libc.so.6",
                "usr/lib/x86_64-linux-gnu/libc.so.6",
            ),
            (
                "lib64/ld-linux-x86-64.so.2",
                "usr/lib64/ld-linux-x86-64.so.2",
            ),
            ("usr/lib/os-release", "usr/lib/os-release"),
            ("libx/a", "libx/a"),
        ] {
            assert_eq!(merged(Path::new(path)), Path::new(expected));
        }
    }
}
