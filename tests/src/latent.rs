//! Metadata that has changed at rest: bits that flipped, blocks that were written elsewhere, or not at all.
//!
//! The promise is another than after a crash. Every metadata block carries its number and a checksum, so what has
//! changed is noticed: a read gives the right bytes or fails, whatever it needs of the metadata; `check` names a
//! block that is damaged; `repair` gives no mapping that is wrong. Data blocks have no checksums, and are left alone.
//!
//! An older version of a block, in its place and with its checksum, is what a disk leaves that did not write. It
//! cannot always be noticed: nothing in a block tells its age. So wrong reads, findings and wrong mappings are
//! only counted there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use metadata_check::{BlockSource, CheckOptions, check};
use parking_lot::Mutex;
use pool::INCOMPAT_LOG;
use serde::Serialize;

use crate::Prng;
use crate::driver::{Driver, Script};
use crate::episode::{Failure, message};
use crate::executor::block_on;
use crate::image::{Dumped, dumped};
use crate::model::{BLOCK, Model, UNIT};
use crate::ops::{Generator, Op};
use crate::sim::{Geometry, Image, Machine, Salvaged, to_usize};

/// The most blocks that are damaged at a time.
const DAMAGED_MAX: u64 = 3;

/// How a block has changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Some of its bits.
    Flipped,
    /// A sector reads as zeros.
    Zeroed,
    /// A sector holds anything.
    Noise,
    /// It holds what belongs elsewhere.
    Misdirected,
    /// It holds what it did earlier.
    Stale,
}

impl Change {
    const ALL: [Change; 5] = [
        Change::Flipped,
        Change::Zeroed,
        Change::Noise,
        Change::Misdirected,
        Change::Stale,
    ];

    /// The block after it.
    fn of(self, nr: u64, pool: &AtRest, prng: &mut Prng) -> [u8; 4096] {
        let mut block = pool.block(nr);
        let sector = prng.index(8) * 512;
        match self {
            Change::Flipped => {
                for _ in 0..=prng.below(4) {
                    block[prng.index(4096)] ^= 1 << prng.below(8);
                }
            }
            Change::Zeroed => block[sector..sector + 512].fill(0),
            Change::Noise => block[sector..sector + 512].fill_with(|| prng.bits().to_le_bytes()[0]),
            Change::Misdirected => block = pool.block(pool.used[prng.index(pool.used.len())]),
            Change::Stale => {
                let earlier = &pool.earlier[prng.index(pool.earlier.len())];
                if nr < earlier.len() / 4096 {
                    earlier.read(nr * 4096, &mut block);
                }
            }
        }
        block
    }
}

/// What episodes with one kind of change have shown.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Shown {
    /// Episodes.
    pub episodes: u64,
    /// Blocks that were damaged.
    pub damaged: u64,
    /// Pools that did not open.
    pub refused: u64,
    /// Reads of a block, or a part of one.
    pub reads: u64,
    /// Of these, ones that failed.
    pub failed: u64,
    /// Ones that showed wrong bytes.
    pub wrong: u64,
    /// Episodes that `check` found nothing in.
    pub unnoticed: u64,
    /// Repairs that were refused.
    pub unrepaired: u64,
    /// Mappings that there were.
    pub mappings: u64,
    /// Mappings that a repair gave.
    pub recovered: u64,
    /// Of these, wrong ones.
    pub wrong_mappings: u64,
}

impl Shown {
    fn add(&mut self, other: &Shown) {
        self.episodes += other.episodes;
        self.damaged += other.damaged;
        self.refused += other.refused;
        self.reads += other.reads;
        self.failed += other.failed;
        self.wrong += other.wrong;
        self.unnoticed += other.unnoticed;
        self.unrepaired += other.unrepaired;
        self.mappings += other.mappings;
        self.recovered += other.recovered;
        self.wrong_mappings += other.wrong_mappings;
    }
}

/// By kind of change.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Tally(pub BTreeMap<Change, Shown>);

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Tally) {
        for (change, shown) in &other.0 {
            self.0.entry(*change).or_default().add(shown);
        }
    }
}

/// A pool that nobody has open.
struct AtRest {
    machine: Machine,
    model: Model,
    image: Image,
    /// The metadata at some earlier commits.
    earlier: Vec<Image>,
    /// Metadata blocks that the last commit needs.
    used: Vec<u64>,
    /// The mappings of the last commit.
    truth: BTreeMap<u32, Dumped>,
}

impl AtRest {
    /// After some operations: closed, or killed.
    fn drawn(prng: &mut Prng) -> Self {
        let script = Script {
            geometry: Geometry {
                data_blocks: 12 + prng.below(40),
                metadata_blocks: 600,
            },
            seed: prng.bits(),
            ..Script::default()
        };
        let mut driver = Driver::of_script(&script);
        let mut generator = Generator::swarm(prng.fork(), 20);
        let mut earlier = vec![driver.machine.metadata.image()];
        for _ in 0..10 + prng.below(30) {
            let op = generator.next(&driver.model);
            driver.step(&op);
            if prng.chance(20) {
                driver.step(&Op::Commit);
                earlier.push(driver.machine.metadata.image());
            }
        }
        driver.step(&Op::Commit);
        if prng.chance(50) {
            driver.step(&Op::Reopen);
        }
        let machine = driver.machine.after_kill(prng);
        let image = machine.metadata.image();
        let reads = Reads {
            image: &image,
            seen: Mutex::default(),
        };
        assert!(check(&reads, &options()).is_sound());
        AtRest {
            used: reads.seen.into_inner().into_iter().collect(),
            truth: dumped(&image),
            machine,
            model: driver.model,
            image,
            earlier,
        }
    }

    fn block(&self, nr: u64) -> [u8; 4096] {
        let mut block = [0; 4096];
        self.image.read(nr * 4096, &mut block);
        block
    }

    /// Damages blocks; those that are different then.
    fn damage(&self, change: Change, prng: &mut Prng) -> BTreeSet<u64> {
        let mut damaged = BTreeSet::new();
        for _ in 0..=prng.below(DAMAGED_MAX) {
            let nr = self.used[prng.index(self.used.len())];
            let block = change.of(nr, self, prng);
            if block != self.block(nr) {
                self.machine.metadata.put(nr, &block);
                damaged.insert(nr);
            }
        }
        damaged
    }

    /// Reads all there is.
    fn read(&self, shown: &mut Shown) {
        let Ok(pool) = self.machine.open() else {
            shown.refused += 1;
            return;
        };
        for (name, expected) in &self.model.devices {
            let Ok(device) = pool.open_device(name) else {
                // A catalog that does not belong to the metadata any more.
                shown.wrong += 1;
                continue;
            };
            for at in (0..expected.size).step_by(to_usize(BLOCK)) {
                let mut bytes = vec![0; to_usize(BLOCK.min(device.size().saturating_sub(at)))];
                shown.reads += 1;
                if block_on(device.read(at, &mut bytes)).is_err() {
                    shown.failed += 1;
                    continue;
                }
                let mut units = (at / UNIT as u64..).zip(bytes.chunks(UNIT));
                let is_wrong = |(unit, found): (u64, &[u8])| {
                    let wanted = expected.unit(unit);
                    wanted.bytes()[..found.len()] != *found
                };
                shown.wrong += u64::from(units.any(is_wrong));
            }
        }
    }

    /// Whether `check` finds damage, and names a block that has any.
    fn is_noticed(&self, damaged: &BTreeSet<u64>) -> bool {
        let report = check(&self.machine.metadata.image(), &options());
        let blocks = report.findings.iter().filter_map(|finding| finding.block);
        let mut named = blocks.filter(|block| damaged.contains(block));
        !report.is_sound() && named.next().is_some()
    }

    /// Counts what a repair gives. It may be refused if nothing tells any more where the trees are.
    fn repair(&self, damaged: &BTreeSet<u64>, shown: &mut Shown) {
        shown.mappings += self
            .truth
            .values()
            .map(|device| device.mappings.len() as u64)
            .sum::<u64>();
        let new = match Salvaged::of(&self.machine) {
            Ok(new) => new.image(),
            Err(_) if damaged.contains(&0) && damaged.len() > 1 => {
                shown.unrepaired += 1;
                return;
            }
            Err(cause) => panic!("repair, damaged {damaged:?}: {cause}"),
        };
        assert!(check(&new, &options()).is_sound(), "what was repaired");
        let given = dumped(&new);
        for (id, truth) in &self.truth {
            for (block, mapping) in given.get(id).into_iter().flat_map(|given| &given.mappings) {
                let is_right = truth
                    .mappings
                    .get(block)
                    .is_some_and(|right| right.data == mapping.data);
                shown.recovered += 1;
                shown.wrong_mappings += u64::from(!is_right);
            }
        }
        let others = given.iter().filter(|(id, _)| !self.truth.contains_key(id));
        let foreign: usize = others.map(|(_, device)| device.mappings.len()).sum();
        shown.recovered += foreign as u64;
        shown.wrong_mappings += foreign as u64;
    }
}

/// Notes which blocks are read.
struct Reads<'a> {
    image: &'a Image,
    seen: Mutex<BTreeSet<u64>>,
}

impl BlockSource for Reads<'_> {
    fn read_block(&self, nr: u64, block: &mut [u8; 4096]) -> io::Result<()> {
        self.seen.lock().insert(nr);
        self.image.read_block(nr, block)
    }

    fn block_count(&self) -> io::Result<u64> {
        self.image.block_count()
    }
}

fn options() -> CheckOptions<'static> {
    CheckOptions {
        allowed_incompat: INCOMPAT_LOG,
        ..CheckOptions::default()
    }
}

/// Runs the episode of a seed.
///
/// # Errors
/// When damage is taken for what is right, or cannot be dealt with.
pub fn episode(seed: u64) -> Result<Tally, Box<Failure>> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed)));
    outcome.map_err(|cause| Box::new(Failure::without_script(message(&*cause))))
}

fn run(seed: u64) -> Tally {
    let mut prng = Prng::new(seed);
    let pool = AtRest::drawn(&mut prng);
    let change = Change::ALL[prng.index(Change::ALL.len())];
    let damaged = pool.damage(change, &mut prng);
    let mut shown = Shown {
        episodes: 1,
        damaged: damaged.len() as u64,
        ..Shown::default()
    };
    if !damaged.is_empty() {
        shown.unnoticed = u64::from(!pool.is_noticed(&damaged));
        pool.repair(&damaged, &mut shown);
        pool.read(&mut shown);
    }
    if change != Change::Stale {
        let who = format!("{change:?}, blocks {damaged:?}: {shown:?}");
        assert_eq!(shown.wrong, 0, "wrong bytes: {who}");
        assert_eq!(shown.unnoticed, 0, "check does not name it: {who}");
        assert_eq!(shown.wrong_mappings, 0, "wrong mappings: {who}");
        let is_superblock = damaged.iter().eq([&0]);
        assert!(
            !is_superblock || shown.refused == 0 && shown.recovered == shown.mappings,
            "a lost superblock is known: {who}"
        );
    }
    Tally(BTreeMap::from([(change, shown)]))
}
