//! A pool with two volumes and a snapshot, of which is known what they may hold.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::missing_panics_doc, reason = "all of it is checks")]

use std::ops::Range;
use std::sync::Arc;

use pool::{Error, ErrorKind, Mode, Pool};

use crate::Prng;
use crate::executor::{Task, block_on, run};
use crate::setup::{expect_true_space, geometry, name, new, read_all};
use crate::sim::{Fault, Io, Machine, Shape, SimHost};
use crate::truth::{BLOCK, Kept, SUB_BLOCK, Truth, Volume};

/// Bytes of a data block.
pub const BLOCK_BYTES: u64 = 65_536;
/// Blocks of each volume.
pub const BLOCKS: usize = 6;

/// The sectors of a block.
pub fn block(index: usize) -> Range<usize> {
    index * BLOCK..(index + 1) * BLOCK
}

/// The sectors of a sub-block of a block.
pub fn sub_block(index: usize, of: usize) -> Range<usize> {
    let begin = of * BLOCK + index * SUB_BLOCK;
    begin..begin + SUB_BLOCK
}

/// What is known of the contents of a pool: the volumes `a` and `b`, and the snapshot `a@s`.
pub struct Contents {
    /// What `a` may hold.
    pub a: Truth,
    /// What `b` may hold.
    pub b: Truth,
    snapshot: Vec<u8>,
}

impl Contents {
    /// The volumes.
    pub fn all(&self) -> [(&'static str, &Truth); 2] {
        [("a", &self.a), ("b", &self.b)]
    }

    /// Fails unless a pool holds what must be there.
    pub fn expect(&self, who: &str, pool: &Arc<Pool<SimHost>>, kept: Kept) {
        for (volume, truth) in self.all() {
            truth.expect(who, &read_all(pool, &name(volume)), kept);
        }
        let same = read_all(pool, &name("a@s")) == self.snapshot;
        assert!(same, "{who}: the snapshot has changed");
    }

    /// Fails unless a machine's pool opens and holds what must be there; after a commit and another power
    /// cut, too.
    pub fn examine(&self, who: &str, machine: &Machine, kept: Kept) {
        let pool = machine.open().unwrap();
        self.expect(who, &pool, kept);
        assert_eq!(pool.status().mode, Mode::Write, "{who}");
        let found = ["a", "b"].map(|volume| read_all(&pool, &name(volume)));
        expect_true_space(machine, &pool);
        self.expect(who, &pool, kept);
        let later = machine.after_cut(Shape::Nothing, &mut Prng::new(3));
        let pool = later.open().unwrap();
        let last = ["a", "b"].map(|volume| read_all(&pool, &name(volume)));
        assert!(found == last, "{who}: a commit has changed it");
    }
}

/// A pool whose volumes `a` and `b` have six blocks; the first two of `a` are written, and shared with
/// `a@s`. It has a log.
pub struct Scene {
    /// Its stores.
    pub machine: Machine,
    /// Its pool.
    pub pool: Arc<Pool<SimHost>>,
    /// What it may hold.
    pub contents: Contents,
}

impl Scene {
    /// A scene on so many data blocks.
    pub fn new(data_blocks: u64, prng: Prng) -> Self {
        let machine = Machine::new(geometry(data_blocks), prng);
        let pool = machine.open().unwrap();
        for volume in ["a", "b"] {
            let size = BLOCKS as u64 * BLOCK_BYTES;
            block_on(pool.create_volume(new(volume), size, None)).unwrap();
        }
        let mut scene = Scene {
            machine,
            pool,
            contents: Contents {
                a: Truth::new("a", 0xa, BLOCKS),
                b: Truth::new("b", 0xb, BLOCKS),
                snapshot: Vec::new(),
            },
        };
        block_on(scene.a().write(0..2 * BLOCK)).unwrap();
        block_on(scene.pool.create_snapshots(vec![new("a@s")])).unwrap();
        scene.contents.a.note_all_flushed();
        scene.contents.snapshot = read_all(&scene.pool, &name("a@s"));
        scene
    }

    /// The volume `a`, opened.
    pub fn a(&self) -> Volume<'_> {
        Volume::new(self.pool.open_device(&name("a")).unwrap(), &self.contents.a)
    }

    /// The volume `b`, opened.
    pub fn b(&self) -> Volume<'_> {
        Volume::new(self.pool.open_device(&name("b")).unwrap(), &self.contents.b)
    }

    /// Flushes `a`, and fails if that takes a commit.
    pub fn flush_a(&self) {
        let before = self.pool.status().commits;
        let written = self.machine.metadata.writes();
        block_on(self.a().flush()).unwrap();
        assert_eq!(self.pool.status().commits, before, "a commit");
        assert_eq!(self.machine.metadata.writes(), written, "metadata writes");
    }

    /// Fails unless all that was flushed is there, whatever else a power cut now leaves.
    pub fn expect_durable(&self, who: &str) {
        for (shape, seed) in Shape::ALL.into_iter().zip(1..) {
            let survivor = self.machine.after_cut(shape, &mut Prng::new(seed));
            let who = format!("{who}, {shape:?}");
            self.contents.examine(&who, &survivor, Kept::Flushed);
        }
    }

    /// Cuts the power, opens the pool again and looks what there is.
    pub fn restart_after_cut(&mut self, prng: &mut Prng) {
        self.cut_power(prng);
        self.start_after_cut();
    }

    /// Cuts the power; the pool is not opened again yet.
    pub fn cut_power(&mut self, prng: &mut Prng) {
        self.machine.power.cut();
        self.machine = self.machine.after_cut(Shape::any(prng), prng);
    }

    /// Opens the pool again and looks what there is.
    ///
    /// # Panics
    /// When anything that was flushed is not there.
    pub fn start_after_cut(&mut self) {
        self.pool = self.machine.open().unwrap();
        self.contents
            .expect("after a cut", &self.pool, Kept::Flushed);
        for (volume, truth) in self.contents.all() {
            truth.settle_after_cut(&read_all(&self.pool, &name(volume)));
        }
    }

    /// Kills the daemon, opens the pool again and looks what there is.
    pub fn restart_after_kill(&mut self, prng: &mut Prng) {
        self.machine.power.cut();
        self.machine = self.machine.after_kill(prng);
        self.pool = self.machine.open().unwrap();
        let kept = Kept::Acknowledged;
        self.contents.expect("after a kill", &self.pool, kept);
        for (volume, truth) in self.contents.all() {
            truth.settle_after_kill(&read_all(&self.pool, &name(volume)));
        }
    }

    /// Makes the first block of `a` one that cannot be filled in, with a write that is flushed.
    pub fn leave_a_out(&self) {
        block_on(self.a().write(sub_block(0, 0))).unwrap();
        let power = &self.machine.power;
        power.set_faults([Fault::lasting(Io::DataRead)]);
        self.flush_a();
    }

    /// Commits, and fails unless that leaves a volume out.
    pub fn expect_left_out(&self) {
        let committed = block_on(self.pool.commit());
        let is_so = matches!(committed, Err(Error::NotCommitted { .. }));
        assert!(is_so, "{committed:?}");
    }
}

/// Requests of one kind after another, until one fails.
///
/// # Errors
/// That one's.
pub async fn churn(volume: Volume<'_>, mut prng: Prng, rounds: usize) -> Result<(), Error> {
    for _ in 0..rounds {
        let at = prng.index(BLOCKS);
        let changed = match prng.below(8) {
            0..2 => volume.write(block(at)).await,
            2..4 => volume.write(sub_block(prng.index(16), at)).await,
            4 => volume.write_durably(sub_block(prng.index(16), at)).await,
            5 | 6 => volume.discard(at..at + 1).await,
            _ => Ok(()),
        };
        match changed {
            // A pool that is full goes on with what it has.
            Err(cause) if cause.kind() == ErrorKind::NoSpace => {}
            changed => changed?,
        }
        if prng.chance(60) {
            volume.flush().await?;
        }
    }
    Ok(())
}

/// Runs a load with commits on a scene.
pub fn run_load(scene: &Scene, prng: &mut Prng, rounds: usize) {
    let (a, b) = (scene.a(), scene.b());
    let (of_a, of_b, mut order) = (prng.fork(), prng.fork(), prng.fork());
    let mut pauses = prng.fork();
    let tasks: Vec<Task<'_>> = vec![
        Box::pin(async { drop(churn(a, of_a, rounds).await) }),
        Box::pin(async { drop(churn(b, of_b, rounds).await) }),
        Box::pin(async {
            for _ in 0..pauses.below(rounds as u64) {
                let _may_be_cut = scene.pool.commit().await;
            }
        }),
    ];
    run(tasks, &mut order);
}
