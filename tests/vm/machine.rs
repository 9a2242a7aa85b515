//! One virtual machine: a QEMU process on a disk of its own, and what comes out of it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::event::Event;

/// The parts of an image, as `tests/vm/image` makes them.
const DISKS: [&str; 2] = ["disk.img", "swap.img"];

/// Two processors, as the host has; a third of a small node's memory.
const PROCESSORS: &str = "2";
const MEMORY: &str = "3072";

pub(crate) struct Machine {
    name: &'static str,
    image: PathBuf,
    /// Holds the disks and what comes out.
    folder: PathBuf,
    kernel_words: String,
    qemu: Option<Child>,
    /// How much of the report has been read.
    heard: u64,
}

impl Machine {
    /// A machine with a copy of `image`'s disks in `folder`. It is off.
    pub(crate) fn new(
        name: &'static str,
        image: &Path,
        folder: &Path,
        kernel_words: &str,
    ) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        for disk in DISKS {
            let status = Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .args([image.join(disk), folder.join(disk)])
                .status()?;
            ensure!(status.success(), "cannot copy {disk}");
        }
        for file in ["console", "journal", "report"] {
            fs_err::write(folder.join(file), "")?;
        }
        Ok(Self {
            name,
            image: image.to_owned(),
            folder: folder.to_owned(),
            kernel_words: format!("cria.machine={name} {kernel_words}"),
            qemu: None,
            heard: 0,
        })
    }

    /// Turns it on; it goes on with its tests where it was.
    pub(crate) fn power_on(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.join("qemu.log"))?;
        let mut command = command(&self.image, &self.folder, &self.kernel_words);
        command.args(["-display", "none", "-device", "virtio-serial-pci"]);
        command.args(["-chardev", &self.sink("console"), "-serial", "chardev:console"]);
        for port in ["journal", "report"] {
            command.args(["-chardev", &self.sink(port)]);
            command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.qemu = Some(child.context("qemu-system-x86_64 cannot be started")?);
        Ok(())
    }

    /// Takes its power away, as a storm would.
    pub(crate) fn power_off(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            // It may have ended by itself.
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }

    pub(crate) fn is_on(&mut self) -> bool {
        self.qemu.as_mut().is_some_and(|qemu| matches!(qemu.try_wait(), Ok(None)))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What it has said since the last call.
    pub(crate) fn news(&mut self) -> Result<Vec<Event>> {
        let mut report = File::open(self.folder.join("report"))?;
        report.seek(SeekFrom::Start(self.heard))?;
        let mut bytes = vec![];
        report.read_to_end(&mut bytes)?;
        // The last line may be only half there.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.heard += u64::try_from(whole)?;
        let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
    }

    fn sink(&self, port: &str) -> String {
        format!("file,id={port},path={},append=on", self.folder.join(port).display())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
        for disk in DISKS {
            // They are large, and nobody asks for them again.
            let _ = fs_err::remove_file(self.folder.join(disk));
        }
    }
}

/// QEMU with the kernel and processors of all machines, on the disks in `folder`.
pub(crate) fn command(image: &Path, folder: &Path, kernel_words: &str) -> Command {
    // It ends with us, however we end.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // No KVM: where these tests run it does not work, though its device is there.
    command
        .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"])
        .args(["-smp", PROCESSORS, "-m", MEMORY, "-monitor", "none"])
        .args(["-nic", "user,model=virtio-net-pci", "-device", "virtio-rng-pci"])
        .args(["-kernel".as_ref(), image.join("vmlinuz").as_os_str()])
        .args(["-initrd".as_ref(), image.join("initrd.img").as_os_str()])
        .args(["-append", &format!("{KERNEL_WORDS} {kernel_words}")]);
    for disk in DISKS {
        let file = folder.join(disk).display().to_string();
        // What the host's kernel has taken is safe from the end of QEMU.
        command.args(["-drive", &format!("file={file},if=virtio,format=raw,cache=unsafe")]);
    }
    command
}

/// Mitigations cost time that emulation has none of; huge pages are for the pods that ask for them.
const KERNEL_WORDS: &str = "root=/dev/vda rw console=ttyS0 panic=-1 quiet mitigations=off \
    net.ifnames=0 psi=1 hugepagesz=2M hugepages=16";
