//! Every metadata block of a pool, damaged in every way: what check sees, what repair brings back, and how
//! much of that is wrong. Ends with a line of JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use metadata_check::{BlockSource, CheckOptions, check};
use metadata_restore::{Hints, MetadataSize, Options, Repaired, repair};
use pool::BlockSize;
use tests::Prng;
use tests::executor::block_on;

use crate::losses::losses_are_named;
use crate::stores::{History, Image};
use crate::subject::{BLOCK, SMALL, Subject};
use crate::truth::{Mapping, Role, Truth, at};

/// What is done to a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Damage {
    BitFlip,
    Zeroed,
    Random,
    OtherBlock,
    /// The last one before, or one of those before that.
    OlderVersion(usize),
}

const KINDS: [Damage; 5] = [
    Damage::BitFlip,
    Damage::Zeroed,
    Damage::Random,
    Damage::OtherBlock,
    Damage::OlderVersion(0),
];

/// Images that are counted together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    Damaged,
    Older,
    /// All trees of an earlier commit, of which some blocks are used again.
    OlderSuperblock,
}

impl Class {
    fn of(block: u64, damage: Damage) -> Self {
        match damage {
            Damage::OlderVersion(_) if block == 0 => Class::OlderSuperblock,
            Damage::OlderVersion(_) => Class::Older,
            _ => Class::Damaged,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Class::Damaged => "damaged",
            Class::Older => "older versions",
            Class::OlderSuperblock => "older superblocks",
        }
    }
}

/// How many older versions of a block the long form tries.
const VERSIONS_MAX: usize = 12;

/// What came of some images.
#[derive(Default, Debug)]
struct Tally {
    images: u64,
    detected: u64,
    /// Images of which check says exactly which ranges of which devices they cost.
    named: u64,
    recoverable: u64,
    recovered: u64,
    wrong: u64,
    panics: u64,
    refused: u64,
}

impl Tally {
    fn json(&self) -> String {
        let Tally {
            images,
            detected,
            named,
            recoverable,
            recovered,
            wrong,
            panics,
            refused,
        } = self;
        format!(
            "{{\"images\": {images}, \"detected\": {detected}, \"named\": {named}, \"recoverable\": {recoverable}, \
             \"recovered\": {recovered}, \"wrong\": {wrong}, \"panics\": {panics}, \"refused\": {refused}}}"
        )
    }
}

type Mappings = BTreeMap<u64, BTreeSet<Mapping>>;

/// A pool, and the truth about it.
struct Experiment {
    subject: Subject,
    intact: Image,
    truth: Truth,
    mappings: Mappings,
    prng: Prng,
    directory: tempfile::TempDir,
    /// By whether thin_repair was it that repaired.
    tallies: BTreeMap<(bool, Class), Tally>,
}

impl Experiment {
    fn new() -> Self {
        let subject = Subject::closed(SMALL);
        let intact = subject.metadata.image();
        assert!(check(&intact, &CheckOptions::default()).is_sound());
        let truth = Truth::of(&intact);
        assert!(truth.devices.len() >= 6 && truth.levels >= 2 && truth.shared_by > 2);
        Experiment {
            mappings: truth.mappings(),
            subject,
            intact,
            truth,
            prng: Prng::new(1),
            directory: tempfile::tempdir().unwrap(),
            tallies: BTreeMap::new(),
        }
    }

    /// The images with one block damaged in one way; none where that is not possible.
    fn damaged(&mut self, block: u64, damage: Damage) -> Option<Image> {
        let mut image = self.intact.clone();
        let target = &mut image.0[at(block)];
        match damage {
            Damage::BitFlip => {
                let bit = self.prng.index(8 * 4096);
                target[bit / 8] ^= 1 << (bit % 8);
            }
            Damage::Zeroed => target.fill(0),
            Damage::Random => target.fill_with(|| self.prng.bits().to_le_bytes()[0]),
            Damage::OtherBlock => {
                let others: Vec<u64> = self.truth.roles.keys().copied().collect();
                let other = others[self.prng.index(others.len())];
                *target = self.intact.0[at(other)];
            }
            Damage::OlderVersion(version) => {
                *target = *self.subject.metadata.older(at(block)).get(version)?;
            }
        }
        (image.0[at(block)] != self.intact.0[at(block)]).then_some(image)
    }

    /// Damages, checks, opens, repairs and compares.
    fn examine(&mut self, block: u64, damage: Damage, theirs: bool) {
        let Some(image) = self.damaged(block, damage) else {
            return;
        };
        let report = check(&image, &CheckOptions::default());
        let detected = !report.is_sound();
        let named = losses_are_named(&self.truth, &self.intact, block, &report);
        let recoverable = self.truth.recoverable(block);
        let opened = catch_unwind(AssertUnwindSafe(|| self.open(&image)));
        let ours = catch_unwind(AssertUnwindSafe(|| self.repaired(&image)));
        let mut outcomes = vec![(
            false,
            opened.is_err() || ours.is_err(),
            ours.unwrap_or(None),
        )];
        if theirs {
            outcomes.push((true, false, self.repaired_by_theirs(&image)));
        }
        let role = self.truth.roles[&block];
        for (theirs, panicked, given) in outcomes {
            let class = Class::of(block, damage);
            let tally = self.tallies.entry((theirs, class)).or_default();
            tally.images += 1;
            tally.detected += u64::from(detected);
            tally.named += u64::from(named);
            tally.panics += u64::from(panicked);
            tally.refused += u64::from(given.is_none());
            let given = given.unwrap_or_default();
            let recovered = common(&recoverable, &given);
            let wrong = total(&given) - common(&self.mappings, &given);
            tally.recoverable += total(&recoverable);
            tally.recovered += recovered;
            tally.wrong += wrong;
            let is_incomplete = recovered < total(&recoverable) || wrong > 0 || !detected;
            let is_unnamed = class == Class::Damaged && !named;
            if !theirs && (is_incomplete || is_unnamed) {
                println!(
                    "block {block} ({role:?}) {damage:?}: detected {detected}, named {named}, recoverable {}, recovered {recovered}, \
                     given {}, wrong {wrong}",
                    total(&recoverable),
                    total(&given)
                );
            }
        }
    }

    fn open(&self, image: &Image) {
        if let Ok(pool) = self.subject.open_on(History::of(image.clone())) {
            // It may have found out what it has; it must not fail in another way.
            let _ = block_on(pool.close());
        }
    }

    fn repaired(&self, image: &Image) -> Option<Mappings> {
        let path = self.directory.path().join("repaired");
        let repaired = repaired(image, &self.intact.0[0], &path).ok()?;
        let file = File::open(&path).unwrap();
        let mappings = mappings_in(&file);
        let count: u64 = repaired.devices.iter().map(|device| device.mappings).sum();
        assert_eq!(count, total(&mappings), "as reported");
        std::fs::remove_file(&path).unwrap();
        Some(mappings)
    }

    fn repaired_by_theirs(&self, image: &Image) -> Option<Mappings> {
        let from = self.directory.path().join("damaged");
        let to = self.directory.path().join("theirs");
        std::fs::write(&from, image.bytes()).unwrap();
        File::create(&to).unwrap().set_len(64 << 20).unwrap();
        let mut command = std::process::Command::new("timeout");
        command
            .arg("60")
            .arg("thin_repair")
            .arg("-i")
            .arg(&from)
            .arg("-o")
            .arg(&to);
        if image.0[0] != self.intact.0[0] {
            // What it cannot know without a superblock.
            let blocks = self.subject.size.data_blocks.to_string();
            command.args(["--data-block-size", "128", "--transaction-id", "10"]);
            command.args(["--nr-data-blocks", &blocks]);
        }
        let done = command.output().unwrap();
        let is_done = done.status.success();
        is_done.then(|| mappings_in(&File::open(&to).unwrap()))
    }
}

/// Repairs, with a copy of the superblock as its history would have it.
pub fn repaired(
    image: &dyn BlockSource,
    copy: &[u8; 4096],
    path: &Path,
) -> Result<Repaired, metadata_restore::Error> {
    let hints = Hints {
        superblock: Some(copy),
        block_size: Some(BlockSize::DEFAULT),
        data_bytes: Some(SMALL.data_blocks * BLOCK),
        ..Hints::default()
    };
    let options = Options {
        size: MetadataSize::ForDataBlocks(&|_| 2 << 20),
        watch: &|_| ControlFlow::Continue(()),
    };
    repair(image, path, &hints, &options)
}

fn mappings_in(file: &File) -> Mappings {
    let blocks = (0..file.block_count().unwrap()).map(|nr| {
        let mut block = [0; 4096];
        file.read_block(nr, &mut block).unwrap();
        block
    });
    Truth::of(&Image(blocks.collect())).mappings()
}

fn total(mappings: &Mappings) -> u64 {
    mappings.values().map(|all| all.len() as u64).sum()
}

fn common(one: &Mappings, other: &Mappings) -> u64 {
    let in_both = |(id, all): (&u64, &BTreeSet<Mapping>)| {
        other
            .get(id)
            .map_or(0, |others| all.intersection(others).count() as u64)
    };
    one.iter().map(in_both).sum()
}

/// Each block in one way, the blocks that all depends on in every way.
#[test]
fn every_block_in_some_way() {
    let mut experiment = Experiment::new();
    let blocks: Vec<(u64, Role)> = experiment.truth.roles.clone().into_iter().collect();
    for (index, (block, role)) in blocks.into_iter().enumerate() {
        match role {
            Role::Leaf => experiment.examine(block, KINDS[index % KINDS.len()], false),
            _ => KINDS
                .into_iter()
                .for_each(|damage| experiment.examine(block, damage, false)),
        }
    }
    finish(&experiment);
}

#[test]
#[ignore = "takes minutes"]
fn every_block_in_every_way() {
    let mut experiment = Experiment::new();
    let blocks: Vec<u64> = experiment.truth.roles.keys().copied().collect();
    for block in blocks {
        for damage in KINDS {
            experiment.examine(block, damage, true);
        }
        for version in 1..VERSIONS_MAX {
            experiment.examine(block, Damage::OlderVersion(version), false);
        }
    }
    finish(&experiment);
}

/// The figures; and what must be so whatever they are.
fn finish(experiment: &Experiment) {
    let truth = &experiment.truth;
    let tallies = experiment.tallies.iter().map(|((theirs, class), tally)| {
        let whose = if *theirs { "thin_repair" } else { "repair" };
        format!("\"{whose}, {}\": {}", class.name(), tally.json())
    });
    println!(
        "{{\"metadata_blocks\": {}, \"levels\": {}, \"shared_by\": {}, {}}}",
        truth.roles.len(),
        truth.levels,
        truth.shared_by,
        tallies.collect::<Vec<_>>().join(", ")
    );
    for ((theirs, class), ours) in &experiment.tallies {
        if *theirs {
            continue;
        }
        assert_eq!(ours.panics, 0, "panics");
        // An older superblock leads to what was right then. Only its history can tell.
        assert!(ours.wrong == 0 || *class == Class::OlderSuperblock, "wrong");
        if *class == Class::Damaged {
            assert_eq!(ours.detected, ours.images, "detected");
            assert_eq!(ours.named, ours.images, "named");
            assert_eq!(ours.recovered, ours.recoverable, "recovered");
        }
    }
}
