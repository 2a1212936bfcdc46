//! What every test needs: a pool on temporary files, its mount, and programs.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fuse_target::{FuseMount, LoopDevice};
use metadata_btree::{BLOCK_SIZE, FileStore};
use pool::{
    BlockSize, DataIo, DeviceInfo, DeviceName, FileCatalog, Host, Identity, NewDevice, Pool, Stores,
};
use reactor::{FileHost, FileIo, FileLog, block_on};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 64 << 10;

/// How long a test waits for what must happen before it calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether FUSE can be used here; prints why not.
pub fn have_fuse() -> bool {
    let reason = if !Path::new("/dev/fuse").exists() {
        "/dev/fuse is missing"
    } else if !rustix::process::geteuid().is_root() {
        "it needs root"
    } else {
        return true;
    };
    eprintln!("SKIPPED: {reason}");
    false
}

/// Whether loop devices can be used too.
pub fn have_loops() -> bool {
    if !have_fuse() {
        return false;
    }
    let there = Path::new("/dev/loop-control").exists();
    if !there {
        eprintln!("SKIPPED: /dev/loop-control is missing");
    }
    there
}

/// A host whose data syncs wait while the gate is shut.
pub struct GatedHost {
    files: FileHost,
    gate: Arc<gate::Gate>,
}

/// Data I/O of a [`GatedHost`].
pub struct GatedIo {
    file: FileIo,
    gate: Arc<gate::Gate>,
}

pub mod gate {
    //! A gate for futures.

    use std::future::poll_fn;
    use std::sync::Mutex;
    use std::task::{Poll, Waker};

    #[derive(Default)]
    pub struct Gate(Mutex<State>);

    #[derive(Default)]
    struct State {
        shut: bool,
        waiting: Vec<Waker>,
    }

    impl Gate {
        pub fn shut(&self) {
            self.0.lock().unwrap().shut = true;
        }

        pub fn open(&self) {
            let mut state = self.0.lock().unwrap();
            state.shut = false;
            state.waiting.drain(..).for_each(Waker::wake);
        }

        pub fn waiting(&self) -> usize {
            self.0.lock().unwrap().waiting.len()
        }

        pub async fn pass(&self) {
            poll_fn(|context| {
                let mut state = self.0.lock().unwrap();
                if !state.shut {
                    return Poll::Ready(());
                }
                state.waiting.push(context.waker().clone());
                Poll::Pending
            })
            .await;
        }
    }
}

impl DataIo for GatedIo {
    async fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read(at, buf).await
    }

    async fn write(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write(at, buf).await
    }

    async fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        self.file.allocate(at, len).await
    }

    async fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.file.zero(at, len).await
    }

    async fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.file.punch(at, len).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.gate.pass().await;
        self.file.sync().await
    }

    fn sync_at_opening(&self) -> io::Result<()> {
        self.file.sync_at_opening()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

impl Host for GatedHost {
    type Data = GatedIo;

    fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        self.files.offload(job)
    }

    fn open_origin(&self, path: &Path) -> io::Result<GatedIo> {
        Ok(GatedIo {
            file: self.files.open_origin(path)?,
            gate: Arc::clone(&self.gate),
        })
    }

    fn now(&self) -> Duration {
        self.files.now()
    }

    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send {
        self.files.pause(time)
    }
}

/// The files of a pool.
#[derive(Clone)]
pub struct PoolFiles(pub PathBuf);

impl PoolFiles {
    pub fn format(directory: &Path, data_size: u64) -> PoolFiles {
        let files = PoolFiles(directory.to_owned());
        let metadata_blocks = 1024;
        let metadata = files.create("metadata");
        metadata
            .set_len(metadata_blocks * u64::try_from(BLOCK_SIZE).unwrap())
            .unwrap();
        files.create("data").set_len(data_size).unwrap();
        let store = Arc::new(FileStore::new(metadata).unwrap());
        let blocks = data_size / BLOCK;
        Pool::<GatedHost>::format(store, BlockSize::DEFAULT, metadata_blocks, blocks).unwrap();
        files
    }

    fn create(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.0.join(name))
            .unwrap()
    }

    pub fn open(&self, read_only: bool) -> (Arc<Pool<GatedHost>>, Arc<gate::Gate>) {
        let metadata = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.0.join("metadata"));
        let files = FileHost::new();
        let gate = Arc::<gate::Gate>::default();
        let file = files.open_data(&self.0.join("data"), false).unwrap();
        let stores = Stores {
            metadata: Arc::new(FileStore::new(metadata.unwrap()).unwrap()),
            data: GatedIo {
                file,
                gate: Arc::clone(&gate),
            },
            catalog: Box::new(FileCatalog::new(self.0.join("catalog"))),
            log: Box::new(FileLog::new(self.0.join("log"), &[]).unwrap()),
            history: Box::new(pool::FileHistory::new(self.0.join("superblocks"))),
        };
        let host = Arc::new(GatedHost {
            files,
            gate: Arc::clone(&gate),
        });
        let options = pool::OpenOptions {
            read_only,
            ..pool::OpenOptions::default()
        };
        (Pool::open(host, stores, options).unwrap(), gate)
    }

    /// What would be found if the machine stopped now, the page cache being kept.
    pub fn copy_to(&self, directory: &Path) -> PoolFiles {
        for name in ["metadata", "data", "catalog", "log"] {
            std::fs::copy(self.0.join(name), directory.join(name)).unwrap();
        }
        PoolFiles(directory.to_owned())
    }
}

/// A pool, mounted. Dropping it, on failure too, detaches and unmounts whatever is left.
pub struct Rig {
    pub pool: Arc<Pool<GatedHost>>,
    pub gate: Arc<gate::Gate>,
    pub files: PoolFiles,
    pub mount: FuseMount<GatedHost>,
    mounted: Vec<PathBuf>,
    directory: TempDir,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with_data(256 * MIB)
    }

    pub fn with_data(data_size: u64) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let files = PoolFiles::format(directory.path(), data_size);
        Rig::of(directory, files, false)
    }

    pub fn of(directory: TempDir, files: PoolFiles, read_only: bool) -> Rig {
        let (pool, gate) = files.open(read_only);
        let mountpoint = directory.path().join("files");
        match std::fs::create_dir(&mountpoint) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => panic!("{error}"),
            _ => {}
        }
        let mount = FuseMount::start(Arc::clone(&pool), &mountpoint).unwrap();
        Rig {
            pool,
            gate,
            files,
            mount,
            mounted: Vec::new(),
            directory,
        }
    }

    /// Ends it in good order, and begins anew on the same files.
    pub fn reopen(mut self, read_only: bool) -> Rig {
        self.mount.unmount().unwrap();
        block_on(self.pool.close()).unwrap();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        let files = self.files.clone();
        drop(self);
        Rig::of(directory, files, read_only)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn volume(&self, volume: &str, size: u64) -> PathBuf {
        block_on(self.pool.create_volume(new(volume), size, None)).unwrap();
        self.mount.file(&name(volume))
    }

    pub fn snapshot(&self, snapshot: &str) -> PathBuf {
        block_on(self.pool.create_snapshots(vec![new(snapshot)])).unwrap();
        self.mount.file(&name(snapshot))
    }

    pub fn clone_of(&self, source: &str, clone: &str) -> PathBuf {
        block_on(self.pool.clone_device(&name(source), new(clone))).unwrap();
        self.mount.file(&name(clone))
    }

    /// Removes a device whose file was closed just now.
    pub fn remove(&self, device: &str) {
        assert!(
            self.mount.wait_closed(&name(device), PATIENCE),
            "{device} stays open"
        );
        block_on(self.pool.remove(&name(device))).unwrap();
    }

    pub fn info(&self, device: &str) -> DeviceInfo {
        self.pool.info(&name(device)).unwrap()
    }

    /// A directory to mount on, unmounted when the rig goes.
    pub fn mount_directory(&mut self, directory: &str) -> PathBuf {
        let path = self.directory.path().join(directory);
        std::fs::create_dir(&path).unwrap();
        self.mounted.push(path.clone());
        path
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.gate.open();
        for directory in &self.mounted {
            let _not_mounted = Command::new("umount").arg("-q").arg(directory).output();
        }
        let mut left = Vec::new();
        for info in self.pool.devices() {
            if let Some(device) = LoopDevice::find(&self.mount.file(&info.name)).unwrap() {
                let _reported_below = Command::new("losetup")
                    .arg("-d")
                    .arg(device.path())
                    .output();
                left.push(device.path().to_owned());
            }
        }
        assert!(
            left.is_empty() || std::thread::panicking(),
            "left attached: {left:?}"
        );
    }
}

/// Clears away a mount, and the loop device on its file `vol`, when a test fails half way.
pub struct Leftovers(pub PathBuf);

impl Drop for Leftovers {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Ok(Some(device)) = LoopDevice::find(&self.0.join("vol")) {
            let _best_effort = Command::new("losetup")
                .arg("-d")
                .arg(device.path())
                .status();
        }
        let _best_effort = Command::new("umount").arg("-lq").arg(&self.0).status();
    }
}

pub fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

pub fn new(text: &str) -> NewDevice {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let uuid = format!("00000000-0000-4000-8000-{serial:012x}");
    let identity = Identity {
        uuid,
        created: "2000-01-01T00:00:00Z".to_owned(),
    };
    NewDevice {
        name: name(text),
        identity,
    }
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let (succeeded, printed) = try_run(program, arguments);
    assert!(succeeded, "{program} {arguments:?}: {printed}");
    printed
}

/// Runs a program, and returns whether it succeeded and what it printed.
pub fn try_run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&printed).into_owned(),
    )
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn read_write(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// A sequence of numbers that looks random, and is the same each time (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % below
    }

    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len)
            .map(|_| u8::try_from(self.roll(256)).unwrap())
            .collect()
    }
}
