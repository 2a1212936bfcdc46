//! A crowd: requests and operations on names at the same time, interleaved at every await.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::missing_panics_doc, reason = "all of it is checks")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use parking_lot::Mutex;
use pool::{DeviceName, Error, ErrorKind, Mode, NoSpacePolicy, Pool, ThinDevice, Zeroing};

use crate::Prng;
use crate::driver::Tally;
use crate::executor::{Task, block_on, run};
use crate::history::History;
use crate::setup::{expect_true_space, geometry, new, read_all};
use crate::sim::{Fault, FaultKind, Io, Machine, Power, Shape, SimHost};

const BLOCK: u64 = 65_536;
/// Blocks of a volume.
pub const BLOCKS: u64 = 4;
const SECTORS: u64 = BLOCKS * BLOCK / 512;
/// More changes of the stores than any crowd makes.
const CHANGES_MAX: u64 = 1_000_000;
/// How many volumes there are.
pub const VOLUMES: usize = 2;

/// A snapshot or clone that was made: of which volume, and when.
struct Copy {
    name: DeviceName,
    group: u64,
    volume: usize,
    asked: u64,
    done: u64,
    /// What a snapshot held when it was read first: it stays so.
    content: Option<Vec<u8>>,
}

/// What all tasks of a crowd share.
pub struct Crowd {
    /// The pool.
    pub pool: Arc<Pool<SimHost>>,
    power: Arc<Power>,
    history: History,
    copies: Mutex<Vec<Copy>>,
    names: AtomicU64,
    /// Whether errors are to be expected: the power may go, or the store fail.
    may_fail: bool,
    may_be_full: bool,
}

/// The name of a volume.
pub fn volume(index: usize) -> DeviceName {
    DeviceName::volume(&format!("v{index}")).unwrap()
}

impl Crowd {
    /// A crowd on a machine with a pool that is empty.
    pub fn new(machine: &Machine, may_fail: bool, may_be_full: bool) -> Self {
        let pool = machine.open().unwrap();
        for index in 0..VOLUMES {
            let size = BLOCKS * BLOCK;
            block_on(pool.create_volume(new(volume(index)), size, None)).unwrap();
        }
        Crowd {
            pool,
            power: Arc::clone(&machine.power),
            history: History::new(VOLUMES, usize::try_from(SECTORS).unwrap()),
            copies: Mutex::new(Vec::new()),
            names: AtomicU64::new(0),
            may_fail,
            may_be_full,
        }
    }

    /// Whether it succeeded; fails the test unless that may be.
    fn succeeded<T>(&self, what: &str, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            // A dead daemon answers nobody.
            Ok(_) if self.power.is_off() => None,
            Ok(value) => Some(value),
            Err(_) if self.may_fail => None,
            Err(cause) if self.may_be_full && cause.kind() == ErrorKind::NoSpace => None,
            Err(cause) => panic!("{what} failed: {cause}"),
        }
    }

    /// Requests of one task.
    pub async fn requests(&self, index: usize, mut prng: Prng, count: u64) {
        let device = self.pool.open_device(&volume(index)).unwrap();
        for _ in 0..count {
            let len = [1, 3, 8, 128, 200][prng.index(5)];
            let first = if prng.chance(50) {
                prng.below(SECTORS)
            } else {
                prng.below(BLOCKS) * 128
            };
            let sectors = first..(first + len).min(SECTORS);
            match prng.below(100) {
                0..50 => self.write(&device, index, sectors, prng.chance(10)).await,
                50..75 => self.read(&device, index, sectors).await,
                75..83 => self.zero(&device, index, sectors, prng.index(2) == 0).await,
                83..90 => self.discard(&device, index, sectors).await,
                _ => self.flush(&device, index).await,
            }
        }
    }

    async fn write(
        &self,
        device: &ThinDevice<SimHost>,
        index: usize,
        sectors: std::ops::Range<u64>,
        durable: bool,
    ) {
        let (running, bytes) = self.history.begin(index, sectors.clone(), false);
        let written = device.write(sectors.start * 512, &bytes, durable).await;
        if self.succeeded("a write", written).is_some() {
            self.history.end(running);
        }
    }

    async fn read(
        &self,
        device: &ThinDevice<SimHost>,
        index: usize,
        sectors: std::ops::Range<u64>,
    ) {
        let began = self.history.now();
        let mut bytes = vec![0; usize::try_from((sectors.end - sectors.start) * 512).unwrap()];
        let read = device.read(sectors.start * 512, &mut bytes).await;
        if self.succeeded("a read", read).is_some() {
            let ended = self.history.now();
            let found = (index, sectors.start, bytes.as_slice());
            self.history.check("a read", found, began, ended);
            self.history.seen(found, ended);
        }
    }

    async fn zero(
        &self,
        device: &ThinDevice<SimHost>,
        index: usize,
        sectors: std::ops::Range<u64>,
        keep: bool,
    ) {
        let zeroing = if keep {
            Zeroing::KeepMapped
        } else {
            Zeroing::MayUnmap
        };
        let (at, len) = (sectors.start * 512, (sectors.end - sectors.start) * 512);
        let (running, _) = self.history.begin(index, sectors, true);
        let zeroed = device.write_zeroes(at, len, zeroing, false).await;
        if self.succeeded("zeroing", zeroed).is_some() {
            self.history.end(running);
        }
    }

    async fn discard(
        &self,
        device: &ThinDevice<SimHost>,
        index: usize,
        sectors: std::ops::Range<u64>,
    ) {
        let whole = sectors.start.div_ceil(128) * 128..sectors.end / 128 * 128;
        let (at, len) = (sectors.start * 512, (sectors.end - sectors.start) * 512);
        let whole = whole.start..whole.end.max(whole.start);
        let (running, _) = self.history.begin(index, whole, true);
        let discarded = device.discard(at, len, false).await;
        if self.succeeded("a discard", discarded).is_some() {
            self.history.end(running);
        }
    }

    async fn flush(&self, device: &ThinDevice<SimHost>, index: usize) {
        let began = self.history.now();
        if self.succeeded("a flush", device.flush().await).is_some() {
            self.history.durable(index, began);
        }
    }

    /// Lets single reads and writes of the data store fail.
    pub async fn data_errors(&self, machine: &Machine, mut prng: Prng, count: u64) {
        let device = self.pool.open_device(&volume(0)).unwrap();
        for _ in 0..count {
            let io = [Io::DataRead, Io::DataWrite, Io::LogWrite][prng.index(3)];
            machine.power.set_faults([Fault {
                after: prng.below(6),
                kind: match io {
                    Io::LogWrite => FaultKind::StorageFull,
                    _ => FaultKind::Failed,
                },
                ..Fault::once(io)
            }]);
            self.flush(&device, 0).await;
        }
        machine.power.set_faults([]);
    }

    /// Lets writes wait for space, and makes the pool larger now and then; in the end none waits any more.
    async fn keeper(&self, machine: &Machine, data_blocks: u64, mut prng: Prng) {
        self.pool.set_no_space_policy(NoSpacePolicy::default());
        let mut blocks = data_blocks;
        for _ in 0..prng.below(4) {
            yields(200).await;
            blocks += 1 + prng.below(4);
            machine.data.grow(blocks * BLOCK);
            let _ = self.succeeded("growing", self.pool.grow_data(blocks * BLOCK).await);
        }
        yields(200).await;
        self.pool.set_no_space_policy(NoSpacePolicy {
            error_if_no_space: true,
            ..NoSpacePolicy::default()
        });
    }

    /// Operations on names of one task.
    pub async fn control(&self, mut prng: Prng, count: u64) {
        for _ in 0..count {
            match prng.below(10) {
                0..4 => self.snapshot(&mut prng).await,
                4..6 => self.clone_volume(&mut prng).await,
                6..8 => self.remove(&mut prng).await,
                8 => {
                    let _ = self.succeeded("reclaiming", self.pool.reclaim().await);
                }
                _ => {
                    let _ = self.succeeded("usage", self.pool.usage().await);
                }
            }
        }
    }

    async fn snapshot(&self, prng: &mut Prng) {
        let group = self.names.fetch_add(1, Ordering::SeqCst);
        let first = prng.index(VOLUMES);
        let last = if prng.chance(40) { VOLUMES } else { first + 1 };
        let volumes = first..last;
        let names = volumes
            .clone()
            .map(|index| volume(index).at(&format!("s{group}")).unwrap());
        let names: Vec<_> = names.collect();
        let asked = self.history.now();
        let made = self
            .pool
            .create_snapshots(names.iter().map(new).collect())
            .await;
        if self.succeeded("a snapshot", made).is_some() {
            self.note_copies(names.iter().cloned().zip(volumes), group, asked);
            self.look_at(&names).await;
        }
    }

    /// Reads snapshots, unless they are gone already.
    async fn look_at(&self, names: &[DeviceName]) {
        for name in names {
            let Ok(device) = self.pool.open_device(name) else {
                continue;
            };
            let mut bytes = vec![0; usize::try_from(device.size()).unwrap()];
            let read = device.read(0, &mut bytes).await;
            if self.succeeded("reading a snapshot", read).is_none() {
                continue;
            }
            let mut copies = self.copies.lock();
            if let Some(copy) = copies.iter_mut().find(|copy| copy.name == *name) {
                copy.content = Some(bytes);
            }
        }
    }

    async fn clone_volume(&self, prng: &mut Prng) {
        let group = self.names.fetch_add(1, Ordering::SeqCst);
        let index = prng.index(VOLUMES);
        let name = DeviceName::volume(&format!("c{group}")).unwrap();
        let asked = self.history.now();
        let made = self.pool.clone_device(&volume(index), new(&name)).await;
        if self.succeeded("a clone", made).is_some() {
            self.note_copies([(name, index)].into_iter(), group, asked);
        }
    }

    fn note_copies(&self, made: impl Iterator<Item = (DeviceName, usize)>, group: u64, asked: u64) {
        let done = self.history.now();
        let copies = made.map(|(name, volume)| Copy {
            name,
            group,
            volume,
            asked,
            done,
            content: None,
        });
        self.copies.lock().extend(copies);
        // Whatever had ended before is durable with it, in every volume.
        (0..VOLUMES).for_each(|index| self.history.durable(index, asked));
    }

    async fn remove(&self, prng: &mut Prng) {
        let victim = {
            let mut copies = self.copies.lock();
            if copies.is_empty() {
                return;
            }
            let index = prng.index(copies.len());
            copies.swap_remove(index)
        };
        match self.pool.remove(&victim.name).await {
            // Whoever has made it is just looking at it.
            Err(cause) if cause.kind() == ErrorKind::Busy => self.copies.lock().push(victim),
            removed => drop(self.succeeded("removing", removed)),
        }
    }

    /// Tasks of so many requests each, and others of so many operations on names.
    pub fn tasks(&self, prng: &mut Prng, count: u64, controls: u64) -> Vec<Task<'_>> {
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for index in 0..VOLUMES {
            for _ in 0..3 {
                tasks.push(Box::pin(self.requests(index, prng.fork(), count)));
            }
        }
        for _ in 0..2 {
            tasks.push(Box::pin(self.control(prng.fork(), controls)));
        }
        tasks
    }

    /// Checks volumes and copies on a pool, perhaps opened again after a power cut.
    pub fn check(&self, pool: &Arc<Pool<SimHost>>, after_cut: bool) {
        let end = self.history.now();
        for index in 0..VOLUMES {
            let horizon = if after_cut {
                self.history.durable_before(index)
            } else {
                end
            };
            let bytes = read_all(pool, &volume(index));
            self.history
                .check("at the end", (index, 0, &bytes), horizon, end);
        }
        let copies = self.copies.lock();
        for copy in copies.iter() {
            let mut horizon = copy.asked;
            for other in copies.iter().filter(|other| other.group == copy.group) {
                let bytes = read_all(pool, &other.name);
                let found = (other.volume, 0, bytes.as_slice());
                let who = format!("{} ({}..{})", other.name, other.asked, other.done);
                horizon = horizon.max(self.history.check(&who, found, other.asked, other.done));
            }
            let bytes = read_all(pool, &copy.name);
            let is_frozen = copy
                .content
                .as_ref()
                .is_none_or(|content| *content == bytes);
            assert!(is_frozen, "{} has changed", copy.name);
            let who = format!("{}, closure at {horizon}", copy.name);
            self.history
                .check(&who, (copy.volume, 0, &bytes), horizon, copy.done);
        }
    }
}

/// A machine on which no two seeds wait alike.
pub fn hesitant(prng: &mut Prng, data_blocks: u64) -> Machine {
    let machine = Machine::new(geometry(data_blocks), prng.fork());
    machine.power.set_pauses(prng.below(4));
    machine.power.set_holes(50);
    machine.power.expect_end(CHANGES_MAX);
    machine
}

/// Lets others go first so many times.
async fn yields(mut count: u64) {
    poll_fn(|context| {
        if count == 0 {
            return Poll::Ready(());
        }
        count -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How an episode ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Cut,
    Kill,
    Calm,
}

/// A short life of a crowd, its sudden end, and what is left then.
///
/// # Panics
/// When that must not be.
pub fn episode(prng: &mut Prng) -> Tally {
    let is_small = prng.chance(40);
    let data_blocks = if is_small { 10 + prng.below(12) } else { 100 };
    let machine = hesitant(prng, data_blocks);
    let end = [End::Cut, End::Cut, End::Kill, End::Calm][prng.index(4)];
    let fails = prng.chance(20);
    let crowd = Crowd::new(&machine, fails || end != End::Calm, is_small);
    let count = 4 + prng.below(10);
    let controls = 1 + prng.below(count / 2);
    let mut tasks = crowd.tasks(prng, count, controls);
    if fails {
        tasks.push(Box::pin(crowd.data_errors(&machine, prng.fork(), count)));
    }
    let power = &machine.power;
    if is_small && prng.chance(50) {
        tasks.push(Box::pin(crowd.keeper(&machine, data_blocks, prng.fork())));
    }
    if end != End::Calm {
        power.set_kill(end == End::Kill);
        power.cut_at(Some(power.changes() + prng.below(20 * count)));
    }
    run(tasks, &mut prng.fork());
    let mut tally = Tally {
        operations: 6 * count + 2 * controls,
        ..Tally::default()
    };
    let survivor = match end {
        End::Cut => machine.after_cut(Shape::any(prng), prng),
        End::Kill => {
            power.cut();
            machine.after_kill(prng)
        }
        End::Calm if fails => machine.after_cut(Shape::any(prng), prng),
        End::Calm => {
            crowd.check(&crowd.pool, false);
            expect_true_space(&machine, &crowd.pool);
            tally.checks += 1;
            tally.trace = machine.power.trace();
            return tally;
        }
    };
    let is_kill = end == End::Kill;
    if prng.chance(25) {
        survivor.metadata.lose_superblock();
        let pool = survivor.open().unwrap();
        assert_eq!(pool.status().mode, Mode::ReadOnly, "without superblock");
        crowd.check(&pool, !is_kill);
        survivor.rewind();
        tally.lost_superblocks += 1;
    }
    let pool = survivor.open().unwrap();
    crowd.check(&pool, !is_kill);
    expect_true_space(&survivor, &pool);
    tally.checks += 1;
    tally.bytes_compared += VOLUMES as u64 * BLOCKS * BLOCK;
    tally.kills += u64::from(is_kill);
    tally.cuts += u64::from(!is_kill);
    tally.trace = survivor.power.trace();
    tally
}
