//! What the next daemon finds after one was killed: all that was acknowledged or shown, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Waker};

use parking_lot::Mutex;
use pool::{Error, ErrorKind, Mode, Pool, ThinDevice, Zeroing};
use tests::Prng;
use tests::executor::{Task, block_on, run};
use tests::runs::seeds;
use tests::setup::{expect_runs, expect_true_space, geometry, name, new, read_all};
use tests::sim::{Fault, Geometry, Io, Machine, Shape, SimHost};

const BLOCK: usize = 65_536;
const SUB_BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// A pool with the volume `a`, whose first two blocks hold ones and are shared with `a@s`.
struct Scene {
    machine: Machine,
    pool: Arc<Pool<SimHost>>,
}

impl Scene {
    fn new() -> Self {
        Self::seeded(Prng::new(1))
    }

    fn seeded(prng: Prng) -> Self {
        let machine = Machine::new(geometry(64), prng);
        let pool = machine.open().unwrap();
        block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
        let scene = Scene { machine, pool };
        block_on(scene.a().write(0, &[1; 2 * BLOCK], true)).unwrap();
        block_on(scene.pool.create_snapshots(vec![new("a@s")])).unwrap();
        scene
    }

    fn a(&self) -> ThinDevice<SimHost> {
        self.pool.open_device(&name("a")).unwrap()
    }

    /// Makes the first block of `a` one that cannot be filled in, so that commits leave `a` out.
    fn spoil(&self) {
        block_on(self.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
        self.machine
            .power
            .set_faults([Fault::lasting(Io::DataRead)]);
    }

    fn killed(&self) -> Machine {
        self.machine.after_kill(&mut Prng::new(7))
    }

    fn expect_after_kill(&self, runs: &[(u8, usize)]) {
        self.machine.power.set_faults([]);
        expect_runs(&self.pool, &name("a"), runs);
        let survivor = self.killed();
        expect_runs(&survivor.open().unwrap(), &name("a"), runs);
    }
}

const AFTER_DISCARD: &[(u8, usize)] = &[
    (2, SUB_BLOCK),
    (1, BLOCK - SUB_BLOCK),
    (3, SUB_BLOCK),
    (0, BLOCK - SUB_BLOCK),
];

/// A block is discarded and written in part, and the commit leaves the volume out: the log takes the
/// mapping over, and must not forget that there was a hole below it.
#[test]
fn a_discard_below_a_write_that_was_left_out_stays() {
    let scene = Scene::new();
    let second = BLOCK as u64;
    scene.spoil();
    block_on(scene.a().discard(second, BLOCK as u64, false)).unwrap();
    block_on(scene.a().write(second, &[3; SUB_BLOCK], false)).unwrap();
    let committed = block_on(scene.pool.commit());
    assert!(
        matches!(committed, Err(Error::NotCommitted { .. })),
        "{committed:?}"
    );
    scene.expect_after_kill(AFTER_DISCARD);
}

/// As before, but the write comes while the commit runs that leaves the volume out.
#[test]
fn a_discard_that_was_left_out_stays_below_a_later_write() {
    let test = "a_discard_that_was_left_out_stays_below_a_later_write";
    seeds(1, 100, test, |mut prng| {
        let scene = Scene::new();
        let (a, second) = (scene.a(), BLOCK as u64);
        scene.spoil();
        block_on(a.discard(second, BLOCK as u64, false)).unwrap();
        scene.machine.power.set_pauses(3);
        let commit = async {
            let _is_refused = scene.pool.commit().await;
        };
        let mut is_written = false;
        let write = async {
            // Refused when it comes after the commit.
            is_written = a.write(second, &[3; SUB_BLOCK], false).await.is_ok();
        };
        let tasks: Vec<Task<'_>> = vec![Box::pin(commit), Box::pin(write)];
        run(tasks, &mut prng);
        let written = if is_written { AFTER_DISCARD.len() } else { 2 };
        scene.expect_after_kill(&AFTER_DISCARD[..written]);
    });
}

/// Polls `future` step by step, with `between` called after each, until one of them is done.
fn step_by_step<T>(future: impl Future<Output = T>, mut between: impl FnMut() -> bool) {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    while future.as_mut().poll(&mut context).is_pending() {
        if between() {
            return;
        }
    }
}

/// What a read has shown of a write in flight stays shown: a sector of a sub-block that had to be
/// filled in first.
#[test]
fn what_a_read_has_shown_is_there_after_a_kill() {
    let test = "what_a_read_has_shown_is_there_after_a_kill";
    seeds(1, 40, test, |prng| {
        let scene = Scene::seeded(prng);
        let a = scene.a();
        block_on(a.write(0, &[2; SUB_BLOCK], false)).unwrap();
        scene.machine.power.set_pauses(3);
        let at = SUB_BLOCK as u64;
        let mut survivor = None;
        let read = |device: &ThinDevice<SimHost>| {
            let mut found = [0; SECTOR];
            block_on(device.read(at, &mut found)).unwrap();
            found == [5; SECTOR]
        };
        step_by_step(a.write(at, &[5; SECTOR], false), || {
            if read(&a) {
                survivor = Some(scene.killed());
            }
            survivor.is_some()
        });
        if let Some(survivor) = survivor {
            let pool = survivor.open().unwrap();
            let a = pool.open_device(&name("a")).unwrap();
            assert!(read(&a), "a read has shown it, and now it is gone");
        }
    });
}

/// After a failed sync of the data store the kernel has dropped what it could not write. A restart must
/// not make mappings to it durable.
#[test]
fn a_failed_sync_is_not_forgotten_by_a_restart() {
    let test = "a_failed_sync_is_not_forgotten_by_a_restart";
    seeds(1, 30, test, |mut prng| {
        let scene = Scene::seeded(prng.fork());
        block_on(scene.a().write(0, &[2; BLOCK], false)).unwrap();
        scene.machine.power.set_faults([Fault::once(Io::DataSync)]);
        assert!(block_on(scene.a().flush()).is_err());
        assert_eq!(scene.pool.status().mode, Mode::ReadOnly);
        let next = scene.machine.after_kill(&mut prng);
        let Ok(pool) = next.open() else { return };
        let flushed = block_on(pool.open_device(&name("a")).unwrap().flush());
        if flushed.is_err() {
            return;
        }
        // Flushed, says the next daemon. So the power may go.
        let last = next.after_cut(Shape::Nothing, &mut prng).open().unwrap();
        let bytes = read_all(&last, &name("a"));
        let is_foreign = |byte: &u8| *byte != 1 && *byte != 2;
        let foreign = bytes[..BLOCK].iter().position(is_foreign);
        assert_eq!(foreign, None, "foreign bytes after a flush that succeeded");
    });
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// Replaces bytes of a sealed structure and seals it again.
fn forge(content: &mut [u8], sealed: Range<usize>, at: usize, bytes: &[u8]) {
    let part = &mut content[sealed];
    part[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = crc32c(&part[4..]).to_le_bytes();
    part[..4].copy_from_slice(&sum);
}

/// Numbers that nobody would write, in structures that are sound.
#[test]
fn a_forged_log_is_refused() {
    let scene = Scene::new();
    block_on(scene.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
    let content = scene.machine.log.content().unwrap();
    let pages = [0..1024, 4096..5120];
    let full = |at: &usize| content[*at..at + 64].iter().any(|byte| *byte != 0);
    let records: Vec<_> = (8192..content.len()).step_by(64).filter(full).collect();
    assert!(!records.is_empty());
    let values = [
        0,
        1,
        2,
        u64::from(u32::MAX),
        1 << 24,
        u64::MAX - 1,
        u64::MAX,
    ];
    let mut forged = Vec::new();
    for value in values {
        for page in &pages {
            for field in [16, 24] {
                forged.push((page.clone(), field, value));
            }
        }
        for at in &records {
            for field in [8, 16, 24, 32, 40, 48] {
                forged.push((*at..at + 64, field, value));
            }
        }
    }
    for (sealed, field, value) in forged {
        let survivor = scene.killed();
        let mut content = content.clone();
        forge(&mut content, sealed.clone(), field, &value.to_le_bytes());
        survivor.log.set_content(Some(content));
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if let Ok(pool) = survivor.open() {
                let _ = block_on(pool.commit());
            }
        }));
        assert!(opened.is_ok(), "{value:#x} in field {field} of {sealed:?}");
    }
}

/// A flush of a pool that was opened for reading only says what it said before there was a log.
#[test]
fn a_read_only_pool_can_be_flushed_after_a_kill() {
    let scene = Scene::new();
    block_on(scene.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
    let survivor = scene.killed();
    let pool = survivor.open_read_only().unwrap();
    let a = pool.open_device(&name("a")).unwrap();
    block_on(a.flush()).unwrap();
}

const TASKS: usize = 4;
const SHARED_BLOCKS: usize = 2;
const BLOCKS: usize = SHARED_BLOCKS + TASKS;
/// Sectors that belong to the same task, in blocks that tasks share: half a sub-block.
const GRAIN: usize = 4;

/// The versions of a sector, of which only one task makes new ones, one after the other.
#[derive(Clone, Default)]
struct Sector {
    /// What it held, in order.
    versions: Vec<u64>,
    /// The youngest that was acknowledged, or that a read has shown.
    kept: usize,
}

/// What volume `a` may hold.
struct Truth(Mutex<Vec<Sector>>);

impl Truth {
    fn new() -> Self {
        let zero = Sector {
            versions: vec![0],
            kept: 0,
        };
        Truth(Mutex::new(vec![zero; BLOCKS * BLOCK / SECTOR]))
    }

    fn begin(&self, sectors: Range<usize>, is_zero: bool) -> Vec<u8> {
        let mut all = self.0.lock();
        let mut bytes = Vec::new();
        for index in sectors {
            let sector = &mut all[index];
            let number = sector.versions.len();
            let word = if is_zero {
                0
            } else {
                (index << 20 | number) as u64
            };
            sector.versions.push(word);
            bytes.extend_from_slice(&word.to_le_bytes().repeat(SECTOR / 8));
        }
        bytes
    }

    fn end(&self, sectors: Range<usize>) {
        let mut all = self.0.lock();
        for sector in &mut all[sectors] {
            sector.kept = sector.versions.len() - 1;
        }
    }

    /// How old what a read will find may be at most.
    fn horizon(&self) -> Vec<usize> {
        self.0.lock().iter().map(|sector| sector.kept).collect()
    }

    /// Checks what was read, and takes it for shown.
    fn see(&self, who: &str, first: usize, bytes: &[u8], horizon: &[usize]) {
        let mut all = self.0.lock();
        for (index, bytes) in (first..).zip(bytes.chunks(SECTOR)) {
            let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let is_one = bytes.chunks(8).all(|other| other == word.to_le_bytes());
            let sector = &mut all[index];
            let found = sector.versions.iter().rposition(|one| *one == word);
            match found {
                Some(found) if is_one && found >= horizon[index] => {
                    // The oldest that it can have been.
                    let mut fits = (horizon[index]..).zip(&sector.versions[horizon[index]..]);
                    let oldest = fits
                        .find(|(_, one)| **one == word)
                        .map_or(found, |(at, _)| at);
                    sector.kept = sector.kept.max(oldest);
                }
                _ => panic!(
                    "{who}: sector {index} (block {}) holds {word:x} (whole: {is_one}), not one of {:x?} \
                     from {} on",
                    index * SECTOR / BLOCK,
                    sector.versions,
                    horizon[index]
                ),
            }
        }
    }

    /// After a restart what is there is the only version.
    fn settle(&self, bytes: &[u8]) {
        let mut all = self.0.lock();
        for (sector, bytes) in all.iter_mut().zip(bytes.chunks(SECTOR)) {
            let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            // Numbers must not come again.
            sector.versions.push(word);
            sector.kept = sector.versions.len() - 1;
        }
    }
}

struct Load<'a> {
    pool: &'a Arc<Pool<SimHost>>,
    truth: &'a Truth,
    /// Snapshots, with what they held when they were made.
    snapshots: &'a Mutex<Vec<(String, Vec<u8>)>>,
}

impl Load<'_> {
    fn a(&self) -> ThinDevice<SimHost> {
        self.pool.open_device(&name("a")).unwrap()
    }

    async fn requests(&self, task: usize, mut prng: Prng) {
        let a = self.a();
        for _ in 0..40 {
            let sectors = self.sectors(task, &mut prng);
            let at = (sectors.start * SECTOR) as u64;
            let len = (sectors.len() * SECTOR) as u64;
            let own = SHARED_BLOCKS + task;
            let own = own * BLOCK / SECTOR..(own + 1) * BLOCK / SECTOR;
            let done = match prng.below(20) {
                0..8 => {
                    let bytes = self.truth.begin(sectors.clone(), false);
                    a.write(at, &bytes, prng.chance(10)).await.map(|()| sectors)
                }
                8 => {
                    self.truth.begin(sectors.clone(), true);
                    let zeroing = Zeroing::KeepMapped;
                    let zeroed = a.write_zeroes(at, len, zeroing, false).await;
                    zeroed.map(|()| sectors)
                }
                9 | 10 => {
                    self.truth.begin(own.clone(), true);
                    let at = (own.start * SECTOR) as u64;
                    let discarded = a.discard(at, BLOCK as u64, false).await;
                    discarded.map(|()| own)
                }
                11 => a.flush().await.map(|()| 0..0),
                _ => {
                    let first = prng.index(BLOCKS * BLOCK / SECTOR - 16);
                    let mut bytes = vec![0; 16 * SECTOR];
                    let horizon = self.truth.horizon();
                    let read = a.read((first * SECTOR) as u64, &mut bytes).await;
                    if read.is_ok() {
                        self.truth.see("a read", first, &bytes, &horizon);
                    }
                    read.map(|()| 0..0)
                }
            };
            if let Ok(sectors) = done {
                self.truth.end(sectors);
            }
        }
    }

    fn sectors(&self, task: usize, prng: &mut Prng) -> Range<usize> {
        if prng.chance(60) {
            let grains = SHARED_BLOCKS * BLOCK / SECTOR / GRAIN / TASKS;
            let first = (prng.index(grains) * TASKS + task) * GRAIN;
            return first..first + 1 + prng.index(GRAIN);
        }
        let first = (SHARED_BLOCKS + task) * BLOCK / SECTOR;
        let begin = prng.index(128);
        let end = 128.min(begin + [1, 3, 8, 16, 128][prng.index(5)]);
        first + begin..first + end
    }

    async fn control(&self, round: u64, mut prng: Prng) {
        for number in 0..4 {
            let text = format!("a@s{round}-{number}");
            match prng.below(3) {
                0 => {
                    let _ = self.pool.commit().await;
                }
                1 => {
                    let victim = self.snapshots.lock().pop();
                    if let Some((victim, content)) = victim {
                        if self.pool.remove(&name(&victim)).await.is_err() {
                            self.snapshots.lock().push((victim, content));
                        }
                        let _ = self.pool.reclaim().await;
                    }
                }
                _ => {
                    let made = self.pool.create_snapshots(vec![new(&text)]).await;
                    if made.is_ok() {
                        let mut bytes = vec![0; BLOCKS * BLOCK];
                        let device = self.pool.open_device(&name(&text)).unwrap();
                        if device.read(0, &mut bytes).await.is_ok() {
                            self.snapshots.lock().push((text, bytes));
                        }
                    }
                }
            }
        }
    }

    fn tasks(&self, round: u64, prng: &mut Prng) -> Vec<Task<'_>> {
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for task in 0..TASKS {
            tasks.push(Box::pin(self.requests(task, prng.fork())));
        }
        tasks.push(Box::pin(self.control(round, prng.fork())));
        tasks
    }

    /// Fails unless everything acknowledged or shown is there.
    fn check(&self, who: &str) {
        let horizon = self.truth.horizon();
        let bytes = read_all(self.pool, &name("a"));
        self.truth.see(who, 0, &bytes, &horizon);
        for (snapshot, content) in &*self.snapshots.lock() {
            // It may have been removed by what was killed.
            let there = self.pool.info(&name(snapshot)).is_ok();
            let same = !there || read_all(self.pool, &name(snapshot)) == *content;
            assert!(same, "{who}: {snapshot} has moved");
        }
        self.truth.settle(&bytes);
    }
}

fn kills_under_load(test: &str, first: u64, count: u64, data_blocks: u64, with_faults: bool) {
    seeds(first, count, test, |mut prng| {
        let mut machine = Machine::new(geometry(data_blocks), prng.fork());
        let size = (BLOCKS * BLOCK) as u64;
        block_on(machine.open().unwrap().create_volume(new("a"), size, None)).unwrap();
        let (truth, snapshots) = (Truth::new(), Mutex::default());
        machine = machine.after_kill(&mut prng);
        for round in 0..3 {
            machine.power.set_pauses(prng.below(4));
            machine.power.set_holes(50);
            let power = &machine.power;
            power.set_kill(true);
            power.cut_at(Some(power.changes() + 3 + prng.below(500)));
            if with_faults && prng.chance(70) {
                power.set_faults([Fault {
                    after: prng.below(20),
                    is_sticky: prng.chance(50),
                    ..Fault::once(Io::DataRead)
                }]);
            }
            let Ok(pool) = machine.open() else {
                machine.power.cut();
                machine = machine.after_kill(&mut prng);
                continue;
            };
            let load = Load {
                pool: &pool,
                truth: &truth,
                snapshots: &snapshots,
            };
            run(load.tasks(round, &mut prng), &mut prng.fork());
            let survivor = machine.after_kill(&mut prng);
            drop(pool);
            machine = survivor;
            let pool = machine.open().unwrap();
            let load = Load {
                pool: &pool,
                truth: &truth,
                snapshots: &snapshots,
            };
            load.check("after a kill");
            machine = machine.after_kill(&mut prng);
        }
        let pool = machine.open().unwrap();
        expect_true_space(&machine, &pool);
        let after = machine.after_cut(Shape::Nothing, &mut prng);
        let pool = after.open().unwrap();
        Load {
            pool: &pool,
            truth: &truth,
            snapshots: &snapshots,
        }
        .check("after a commit and a power cut");
    });
}

#[test]
fn kills_under_load_lose_nothing() {
    kills_under_load("kills_under_load_lose_nothing", 1, 400, 600, false);
}

#[test]
fn kills_of_a_full_pool_lose_nothing() {
    kills_under_load("kills_of_a_full_pool_lose_nothing", 2000, 300, 16, false);
}

#[test]
fn kills_while_blocks_cannot_be_read_lose_nothing() {
    let test = "kills_while_blocks_cannot_be_read_lose_nothing";
    kills_under_load(test, 4000, 600, 600, true);
}

/// A machine on which a snapshot's commit was killed, so that two mappings of the first block of `a` are
/// replayed, the second over what the first holds; and its pool, opened again. None where that failed.
fn killed_over_two(prng: &mut Prng) -> Option<(Machine, Arc<Pool<SimHost>>)> {
    let machine = Machine::new(geometry(64), prng.fork());
    let pool = machine.open().unwrap();
    for volume in ["a", "b"] {
        block_on(pool.create_volume(new(volume), 8 * BLOCK as u64, None)).unwrap();
    }
    let a = pool.open_device(&name("a")).unwrap();
    block_on(a.write(0, &[1; BLOCK], false)).unwrap();
    let power = &machine.power;
    power.set_pauses(3);
    power.set_kill(true);
    power.cut_at(Some(power.changes() + prng.below(30)));
    let snapshot = async {
        let _may_be_killed = pool.create_snapshots(vec![new("a@s")]).await;
    };
    let reads = prng.below(6);
    let write = async {
        for _ in 0..reads {
            let _may_be_killed = a.read(0, &mut [0; SECTOR]).await;
        }
        let _may_be_killed = a.write(0, &[2; SUB_BLOCK], false).await;
    };
    let tasks: Vec<Task<'_>> = vec![Box::pin(snapshot), Box::pin(write)];
    run(tasks, &mut prng.fork());
    let next = machine.after_kill(prng);
    let pool = next.open().unwrap();
    let is_so = pool.status().partial_blocks > 0 && pool.info(&name("a@s")).is_err();
    is_so.then_some((next, pool))
}

/// Uses up free blocks, and fails if one of them was not free.
fn expect_kept_under_pressure(pool: &Arc<Pool<SimHost>>) {
    let b = pool.open_device(&name("b")).unwrap();
    block_on(b.write(0, &[9; 8 * BLOCK], false)).unwrap();
    let bytes = read_all(pool, &name("a"));
    let wrong = bytes[SUB_BLOCK..BLOCK].iter().position(|byte| *byte != 1);
    assert_eq!(wrong, None, "what the write did not touch has changed");
}

/// The first block must not be given to anybody before the second is filled in.
#[test]
fn what_a_replayed_mapping_was_made_over_is_kept() {
    let test = "what_a_replayed_mapping_was_made_over_is_kept";
    let over_two = Mutex::new(0);
    let ran_all = seeds(7000, 300, test, |mut prng| {
        if let Some((_machine, pool)) = killed_over_two(&mut prng) {
            *over_two.lock() += 1;
            expect_kept_under_pressure(&pool);
        }
    });
    assert!(!ran_all || *over_two.lock() > 0, "no such kill");
}

/// What cannot be committed at the close stays in the log.
#[test]
fn a_pool_is_closed_while_a_volume_is_left_out() {
    let scene = Scene::new();
    scene.spoil();
    let closed = block_on(scene.pool.close());
    assert!(
        matches!(closed, Err(Error::NotCommitted { .. })),
        "{closed:?}"
    );
    let next = scene.killed();
    let written = &[(2, SUB_BLOCK), (1, 2 * BLOCK - SUB_BLOCK)];
    expect_runs(&next.open().unwrap(), &name("a"), written);
}

/// What was closed has no log, and the kernel may have it.
#[test]
fn a_pool_that_was_closed_has_no_log() {
    let scene = Scene::new();
    block_on(scene.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
    assert!(scene.machine.log.content().is_some());
    block_on(scene.pool.close()).unwrap();
    assert!(scene.machine.log.content().is_none());
    let mut flags = [0; 4];
    scene.machine.metadata.image().read(360, &mut flags);
    assert_eq!(flags, [0; 4], "incompat flags");
}

/// The same, and the first commit after the kill cannot fill the block in: what it takes over into the
/// log's next generation must still keep the block below it.
#[test]
fn what_a_mapping_was_made_over_is_kept_when_it_is_left_out() {
    let test = "what_a_mapping_was_made_over_is_kept_when_it_is_left_out";
    let over_two = Mutex::new(0);
    let ran_all = seeds(7000, 300, test, |mut prng| {
        let Some((next, pool)) = killed_over_two(&mut prng) else {
            return;
        };
        *over_two.lock() += 1;
        next.power.set_faults([Fault::lasting(Io::DataRead)]);
        assert!(block_on(pool.commit()).is_err());
        next.power.set_faults([]);
        let last = next.after_kill(&mut prng);
        expect_kept_under_pressure(&last.open().unwrap());
    });
    assert!(!ran_all || *over_two.lock() > 0, "no such kill");
}

/// Where nothing was ever written there is no log; and yet what a killed daemon has committed may be in the
/// page cache alone when the next one builds on it.
#[test]
fn a_kill_without_a_log_tears_nothing() {
    seeds(1, 3000, "a_kill_without_a_log_tears_nothing", |mut prng| {
        let geometry = Geometry {
            data_blocks: 64,
            metadata_blocks: 100 + prng.below(80),
        };
        let machine = Machine::new(geometry, prng.fork());
        let pool = machine.open().unwrap();
        block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
        let a = pool.open_device(&name("a")).unwrap();
        for content in [1, 2] {
            let written = block_on(a.write(0, &[content; 8 * BLOCK], true));
            // The smallest pools have too little metadata for this.
            if written.is_err() || content == 2 {
                break;
            }
            block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        }
        let expected = read_all(&pool, &name("a"));
        drop(a);
        block_on(pool.close()).unwrap();
        let machine = machine.after_kill(&mut prng);
        assert!(machine.log.content().is_none());
        let pool = machine.open().unwrap();
        machine.power.set_kill(true);
        let change = |machine: &Machine, prng: &mut Prng, most| {
            let at = machine.power.changes() + prng.below(most);
            machine.power.cut_at(Some(at));
        };
        change(&machine, &mut prng, 30);
        let _may_be_killed = block_on(pool.remove(&name("a@s")));
        let _may_be_killed = block_on(pool.reclaim());
        let machine = machine.after_kill(&mut prng);
        let pool = machine.open().unwrap();
        change(&machine, &mut prng, 60);
        let _may_be_cut = block_on(pool.reclaim());
        for number in 0..4 {
            let size = 8 * BLOCK as u64;
            let _may_be_cut = block_on(pool.create_volume(new(format!("v{number}")), size, None));
        }
        let survivor = machine.after_cut(Shape::any(&mut prng), &mut prng);
        let pool = survivor.open().unwrap();
        assert!(
            read_all(&pool, &name("a")) == expected,
            "flushed and untouched, and now another"
        );
        expect_true_space(&survivor, &pool);
    });
}

/// With no space for a log the write that would need it fails, and nothing else.
#[test]
fn a_full_disk_below_the_log_stops_nobody() {
    let machine = Machine::new(geometry(64), Prng::new(1));
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    let a = pool.open_device(&name("a")).unwrap();
    machine.power.set_faults([Fault::full(Io::LogCreate)]);
    for _ in 0..3 {
        let refused = block_on(a.write(0, &[1; BLOCK], false)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        block_on(a.flush()).unwrap();
    }
    assert_eq!(pool.status().mode, Mode::OutOfDataSpace);
    machine.power.set_faults([]);
    block_on(a.write(0, &[1; BLOCK], true)).unwrap();
    block_on(pool.look_for_space());
    assert_eq!(pool.status().mode, Mode::Write);
    expect_true_space(&machine, &pool);
}

/// What the scene's volume holds after one small write.
const AFTER_WRITE: &[(u8, usize)] = &[(2, SUB_BLOCK), (1, 2 * BLOCK - SUB_BLOCK)];

/// There is no space for another log, and none for the catalog: the next daemon goes on in the log there is, and
/// the one after that.
#[test]
fn daemons_that_are_killed_on_a_full_disk_go_on() {
    let scene = Scene::new();
    let mut machine = scene.killed();
    let len = machine.log.content().unwrap().len();
    for number in 0..40 {
        let byte = 10 + number;
        let full = [Io::LogCreate, Io::CatalogWrite].map(Fault::full);
        machine.power.set_faults(full);
        let pool = machine.open().unwrap();
        assert_eq!(pool.status().mode, Mode::Write);
        let a = pool.open_device(&name("a")).unwrap();
        let at = u64::from(number) % 8 * BLOCK as u64;
        block_on(a.discard(at, BLOCK as u64, false)).unwrap();
        block_on(a.write(at, &[byte; SUB_BLOCK], false)).unwrap();
        machine = machine.after_kill(&mut Prng::new(number.into()));
        let pool = machine.open().unwrap();
        let bytes = read_all(&pool, &name("a"));
        let at = usize::try_from(at).unwrap();
        assert_eq!(bytes[at..at + SUB_BLOCK], [byte; SUB_BLOCK]);
        assert_eq!(bytes[at + SUB_BLOCK..at + BLOCK], [0; BLOCK - SUB_BLOCK]);
        if number % 3 == 0 {
            block_on(pool.commit()).unwrap();
        }
        machine = machine.after_kill(&mut Prng::new(number.into()));
        assert_eq!(machine.log.content().unwrap().len(), len, "it has grown");
    }
    let pool = machine.open().unwrap();
    expect_true_space(&machine, &pool);
}

/// Not even the log there is can be written: the pool can be read, and says what to do.
#[test]
fn without_space_for_the_log_a_pool_can_be_read() {
    let scene = Scene::new();
    block_on(scene.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
    let machine = scene.killed();
    machine.power.set_faults([Fault::full(Io::LogWrite)]);
    let pool = machine.open().unwrap();
    let status = pool.status();
    assert_eq!(status.mode, Mode::ReadOnly);
    let reason = status.mode_reason;
    assert!(reason.contains("free some"), "{reason}");
    expect_runs(&pool, &name("a"), AFTER_WRITE);
    let next = machine.after_kill(&mut Prng::new(1));
    let pool = next.open().unwrap();
    assert_eq!(pool.status().mode, Mode::Write);
    expect_runs(&pool, &name("a"), AFTER_WRITE);
    expect_true_space(&next, &pool);
}

/// The daemon is killed, or the power goes, at any step of taking the log over, twice in a row.
#[test]
fn a_log_that_is_being_taken_over_is_not_lost() {
    let test = "a_log_that_is_being_taken_over_is_not_lost";
    seeds(9000, 12, test, |mut prng| {
        let scene = Scene::seeded(prng.fork());
        block_on(scene.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
        block_on(scene.a().flush()).unwrap();
        for (first, second) in (0..9).flat_map(|first| (0..9).map(move |second| (first, second))) {
            let mut machine = scene.killed();
            for step in [first, second] {
                let is_kill = prng.chance(50);
                machine.power.set_kill(is_kill);
                machine.power.cut_at(Some(step));
                drop(machine.open());
                machine.power.cut();
                machine = match is_kill {
                    true => machine.after_kill(&mut prng),
                    false => machine.after_cut(Shape::any(&mut prng), &mut prng),
                };
            }
            let pool = machine.open().unwrap();
            expect_runs(&pool, &name("a"), AFTER_WRITE);
            expect_true_space(&machine, &pool);
        }
    });
}

/// A daemon fails to make durable what it takes over. That is held against what it has recorded, not against the
/// daemon after it.
#[test]
fn a_failed_sync_of_a_start_is_not_held_against_the_next_daemon() {
    for failing in 0..2 {
        let mut prng = Prng::new(7);
        let scene = Scene::new();
        block_on(scene.a().write(0, &[2; SUB_BLOCK], false)).unwrap();
        block_on(scene.a().flush()).unwrap();
        let machine = scene.killed();
        let fault = Fault {
            after: failing,
            ..Fault::once(Io::LogSync)
        };
        machine.power.set_faults([fault]);
        assert!(machine.open().is_err(), "sync {failing}");
        machine.power.cut();
        let machine = machine.after_kill(&mut prng);
        let pool = machine.open().unwrap();
        let volume = pool.open_device(&name("a")).unwrap();
        block_on(volume.write(5 * BLOCK as u64, &[4; SUB_BLOCK], false)).unwrap();
        machine.power.cut();
        let machine = machine.after_kill(&mut prng);
        let pool = machine.open().unwrap();
        assert!(!pool.has_cut_log(), "sync {failing}");
        let found = read_all(&pool, &name("a"));
        assert!(found[..SUB_BLOCK].iter().all(|byte| *byte == 2));
        let written = &found[5 * BLOCK..5 * BLOCK + SUB_BLOCK];
        assert!(written.iter().all(|byte| *byte == 4), "sync {failing}");
        expect_true_space(&machine, &pool);
    }
}
