//! Opening the pool again, and taking over what is found if it may be so.

use std::collections::BTreeMap;

use pool::{DeviceName, Mode};

use super::crash::{Crash, End};
use super::{Driver, Tally};
use crate::executor::block_on;
use crate::image::{self, Dumped, dumped};
use crate::model::{BLOCK, Model, UNIT, Unit};
use crate::sim::{Fault, Io, Survivors, to_usize};

impl Driver {
    /// Opens the pool. After a clean close everything must be exactly as it was; after a power cut
    /// it must be one of the things it may be.
    pub(super) fn open_again(&mut self, is_exact: bool) {
        let pool = match self.machine.open() {
            // Also when it was opened: the history's last write may be lost without a word.
            _ if self.machine.power.is_off() => return,
            Ok(pool) => pool,
            Err(cause) => panic!("the pool does not open: {cause}"),
        };
        let plan = self.machine.power.suspend();
        let needs_check = pool.status().needs_check;
        assert!(!needs_check, "needs_check after opening");
        self.pool = Some(pool);
        if !is_exact {
            let dumped = self.dump_with_log();
            self.adopt(&dumped);
        }
        // That commits; now and then the next power cut comes before any commit.
        if is_exact || self.prng.chance(50) {
            self.verify_everything();
        }
        self.machine.power.resume(plan);
    }

    /// The mappings of the pool that was just opened, those in its log included: seen in a copy that
    /// commits them.
    fn dump_with_log(&mut self) -> BTreeMap<u32, Dumped> {
        let copy = self.machine.after_kill(&mut self.prng);
        let committed = copy.open().map(|pool| block_on(pool.commit()));
        assert!(matches!(committed, Ok(Ok(()))), "a copy: {committed:?}");
        let metadata = copy.metadata.image();
        image::expect_sound(&metadata, self.machine.data.image().len() / BLOCK);
        self.tally.checks += 1;
        dumped(&metadata)
    }

    /// Ends the daemon, or the power, unless that has happened already, and opens the pool again. The next
    /// daemons may be interrupted in turn, when they start and commit.
    ///
    /// # Panics
    /// When what is there then is not what must be.
    pub fn crash(&mut self, crash: &Crash) {
        self.held.clear();
        self.pool = None;
        for device in self.model.devices.values_mut() {
            device.open_count = 0;
        }
        let mut ends = crash.ends.iter();
        ends.by_ref().take(1).for_each(|end| self.end(end));
        for end in ends {
            let power = &self.machine.power;
            power.set_kill(end.is_kill);
            power.cut_at(Some(end.after));
            if let Ok(pool) = self.machine.open() {
                let _may_be_interrupted = block_on(pool.commit());
            }
            self.end(end);
        }
        self.tally.doubles += u64::from(crash.ends.len() > 1);
        self.start_without_space();
        let is_kill = crash.ends.iter().all(|end| end.is_kill);
        if (self.tally.kills + self.tally.cuts) % 4 == 3 {
            self.lose_superblock(is_kill);
        }
        if is_kill {
            self.tally.kills += 1;
            self.open_after_kill();
        } else {
            self.tally.cuts += 1;
            self.open_again(false);
        }
        self.before_kill = None;
    }

    /// After every fourth crash, opens the pool first while there is no space below it: it can be read, and nothing
    /// of that is lost when it is opened again. It can also be written, unless even the log has no space.
    fn start_without_space(&mut self) {
        let turn = self.tally.kills + self.tally.cuts;
        if turn % 4 != 1 {
            return;
        }
        let log = [Io::LogCreate, Io::LogWrite];
        let stores = log[..1 + to_usize(turn / 4 % 2)].iter().copied();
        let stores = stores.chain([Io::CatalogWrite]);
        self.machine.power.set_faults(stores.map(Fault::full));
        let found = self.read_once();
        self.machine = self.machine.after_kill(&mut self.prng.clone());
        let copy = self.machine.after_kill(&mut self.prng.clone());
        let machine = std::mem::replace(&mut self.machine, copy);
        assert!(
            found == self.read_once(),
            "a start without space has changed something"
        );
        self.machine = machine;
        self.tally.starts_without_space += 1;
    }

    /// What a daemon shows that is killed afterwards.
    fn read_once(&mut self) -> BTreeMap<DeviceName, Vec<u8>> {
        match self.machine.open() {
            Ok(pool) => self.pool = Some(pool),
            Err(cause) => panic!("the pool does not open: {cause}"),
        }
        let contents = self.read_all();
        self.pool = None;
        contents
    }

    /// Damages the superblock besides. The pool can be read, and holds what it would hold otherwise; nothing is
    /// written until there is a superblock again. Then it is as if nothing had happened.
    fn lose_superblock(&mut self, is_kill: bool) {
        self.history.push("the superblock is lost".to_owned());
        self.tally.lost_superblocks += 1;
        self.machine.metadata.lose_superblock();
        let pool = match self.machine.open() {
            Ok(pool) => pool,
            Err(cause) => panic!("the pool does not open without its superblock: {cause}"),
        };
        assert_eq!(pool.status().mode, Mode::ReadOnly, "without superblock");
        self.pool = Some(pool);
        let contents = self.read_all();
        self.check_allowed(&contents);
        if is_kill {
            self.check_kept(&contents);
        }
        self.pool = None;
        assert_eq!(
            self.machine.power.changes(),
            0,
            "changes of a pool that can only be read"
        );
        if self.prng.chance(10) {
            self.machine.repair();
        } else {
            self.machine.rewind();
        }
    }

    fn end(&mut self, end: &End) {
        self.history.push(format!("{end:?}"));
        self.machine.power.cut();
        if end.is_kill {
            self.machine = self.machine.after_kill(&mut self.prng);
            return;
        }
        let mut survivors = match &end.keeps {
            Some(sectors) => Survivors::sectors(sectors.iter().copied()),
            None => Survivors::drawn(end.shape, &mut self.prng),
        };
        self.machine = self.machine.after_cut_with(&mut survivors, &mut self.prng);
        self.survivors.push(survivors.kept().to_vec());
    }

    /// What comes of it if the power goes now and leaves these sectors. This driver stays as it is.
    ///
    /// # Panics
    /// When what is there then is not what must be.
    pub fn fork_after_cut(&self, survivors: &mut Survivors) -> Driver {
        let mut prng = self.prng.clone();
        let mut fork = Driver {
            machine: self.machine.after_cut_with(survivors, &mut prng),
            model: self.model.clone(),
            alternative: self.alternative.clone(),
            before_kill: None,
            pool: None,
            held: Vec::new(),
            prng,
            number: self.number,
            history: self.history.clone(),
            is_tight: self.is_tight,
            survivors: Vec::new(),
            tally: Tally::default(),
        };
        for device in fork.model.devices.values_mut() {
            device.open_count = 0;
        }
        fork.tally.cuts += 1;
        fork.open_again(false);
        fork
    }

    /// Sees whether everything is what it may be after a power cut, the interrupted operation done or not.
    fn check_allowed(&self, contents: &BTreeMap<DeviceName, Vec<u8>>) {
        let reason = match self.foreign(&self.model, contents) {
            Ok(()) => return,
            Err(reason) => reason,
        };
        let undone = self
            .alternative
            .as_ref()
            .map(|other| self.foreign(other, contents));
        assert_eq!(
            undone,
            Some(Ok(())),
            "without superblock, if not undone: {reason}"
        );
    }

    /// Opens the pool: what was acknowledged must be there.
    fn open_after_kill(&mut self) {
        let pool = match self.machine.open() {
            Ok(pool) => pool,
            Err(cause) => panic!("the pool does not open after a kill: {cause}"),
        };
        self.pool = Some(pool);
        let contents = self.read_all();
        self.check_kept(&contents);
        self.settle_after_kill();
        let dumped = dumped(&self.machine.metadata.image());
        self.adopt(&dumped);
        self.verify_everything();
    }

    /// Makes everything durable, by one commit or by flushes.
    fn settle_after_kill(&mut self) {
        let mut outcome = Ok(());
        if self.prng.chance(50) {
            for info in self.pool().devices() {
                let device = self.pool().open_device(&info.name);
                outcome = outcome.and(device.and_then(|device| block_on(device.flush())));
            }
        }
        outcome = outcome.and_then(|()| block_on(self.pool().commit()));
        assert!(outcome.is_ok(), "after a kill: {outcome:?}");
    }

    /// Sees whether everything is what it was, or what the interrupted operation may have made of it.
    fn check_kept(&self, contents: &BTreeMap<DeviceName, Vec<u8>>) {
        let before = &self.before_kill;
        let models = [Some(&self.model), before.as_ref()];
        for (name, bytes) in contents {
            for (unit, found) in (0..).zip(bytes.chunks(UNIT)) {
                let mut devices = models
                    .iter()
                    .flatten()
                    .filter_map(|model| model.devices.get(name));
                assert!(
                    devices.any(|device| device.unit(unit).is(found)),
                    "after a kill: {name} at unit {unit} holds {:x?}",
                    Unit::of(found)
                );
            }
        }
    }

    fn adopt(&mut self, dumped: &BTreeMap<u32, Dumped>) {
        let contents = self.read_all();
        let other = self.alternative.take();
        if let Err(reason) = self.try_adopt(&contents, dumped) {
            let Some(other) = other else {
                panic!("after a cut or a kill: {reason}")
            };
            self.model = other;
            for device in self.model.devices.values_mut() {
                device.open_count = 0;
            }
            if let Err(second) = self.try_adopt(&contents, dumped) {
                panic!("after a cut or a kill, neither done ({second}) nor undone ({reason})");
            }
        }
    }

    fn read_all(&self) -> BTreeMap<DeviceName, Vec<u8>> {
        let mut contents = BTreeMap::new();
        for info in self.pool().devices() {
            let mut bytes = vec![0; to_usize(info.size)];
            let device = match self.pool().open_device(&info.name) {
                Ok(device) => device,
                Err(cause) => panic!("{} does not open: {cause}", info.name),
            };
            let read = block_on(device.read(0, &mut bytes));
            assert!(read.is_ok(), "{} cannot be read: {read:?}", info.name);
            contents.insert(info.name, bytes);
        }
        contents
    }

    /// Says what of the pool a model does not allow.
    fn foreign(
        &self,
        model: &Model,
        contents: &BTreeMap<DeviceName, Vec<u8>>,
    ) -> Result<(), String> {
        let infos = self.pool().devices();
        let names: Vec<_> = infos.iter().map(|info| &info.name).collect();
        let known: Vec<_> = model.devices.keys().collect();
        if names != known {
            return Err(format!("found {names:?}, expected {known:?}"));
        }
        let may_read_only = self.pool().status().mode == Mode::ReadOnly;
        for info in &infos {
            let device = &model.devices[&info.name];
            let found = (&info.uuid, info.size, info.read_only);
            let read_only = device.read_only || may_read_only;
            let expected = (&device.uuid, device.size, read_only);
            if found != expected {
                return Err(format!(
                    "{}: found {found:?}, expected {expected:?}",
                    info.name
                ));
            }
        }
        let blocks = self.pool().status().data_total_bytes / crate::model::BLOCK;
        if blocks != model.data_blocks {
            return Err(format!(
                "{blocks} data blocks, expected {}",
                model.data_blocks
            ));
        }
        allowed(model, contents)
    }

    /// Takes over contents and mappings, if the model allows them.
    fn try_adopt(
        &mut self,
        contents: &BTreeMap<DeviceName, Vec<u8>>,
        dumped: &BTreeMap<u32, Dumped>,
    ) -> Result<(), String> {
        self.foreign(&self.model, contents)?;
        let infos = self.pool().devices();
        for (name, bytes) in contents {
            let Some(device) = self.model.devices.get_mut(name) else {
                unreachable!("names were compared")
            };
            for (unit, found) in (0..).zip(bytes.chunks(UNIT)) {
                device.adopt(unit, Unit::of(found), true);
            }
            device.settle();
        }
        let mut by_name = BTreeMap::new();
        let mut deleting = dumped.clone();
        for info in infos {
            let Some(found) = deleting.remove(&info.id) else {
                return Err(format!("{} is not in the metadata", info.name));
            };
            by_name.insert(info.name.clone(), (found.mappings, found.snapshotted));
            if let Some(device) = self.model.devices.get_mut(&info.name) {
                device.id = Some(info.id);
            }
        }
        let times = dumped.values().flat_map(|device| device.mappings.values());
        let latest = times.map(|mapping| mapping.time).max().unwrap_or(0);
        self.model.time = self.pool().status().time.max(latest);
        let deleting = deleting.into_values().map(|device| device.mappings);
        self.model.adopt_mappings(by_name, deleting.collect());
        Ok(())
    }
}

fn allowed(model: &Model, contents: &BTreeMap<DeviceName, Vec<u8>>) -> Result<(), String> {
    for (name, bytes) in contents {
        let device = &model.devices[name];
        for (unit, found) in (0..).zip(bytes.chunks(UNIT)) {
            let found = Unit::of(found);
            if !device.allows(unit, &found) {
                let allowed = device.allowed(unit);
                return Err(format!(
                    "{name} at unit {unit}: found {found:x?}, allowed {allowed:x?}"
                ));
            }
        }
    }
    Ok(())
}
