//! The command line: one definition from which come parsing, help, completions and man pages.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use pool::DeviceName;
use serde::{Deserialize, Serialize};

use crate::exit;
use crate::pool_dir::DataAccess;
use crate::serve_args::{self, ServeArgs};
use crate::size::{parse_positive_size, parse_size, parse_small_size, parse_volume_size};
use crate::transports::Transport;

const ABOUT: &str = "Thin volumes, snapshots and clones in a pool of data blocks.

POOL is a directory that holds a pool, or a bare name: a pool of that name in the current directory \
or, if there is none, under /var/lib/thinpool (or $THINPOOL_ROOT). In POOL/VOL and POOL/VOL@SNAP the \
last component names the volume or snapshot.

Sizes are bytes, or numbers with K, M, G, T or P behind them, in powers of 1024.";

/// Thin volumes, snapshots and clones in a pool of data blocks.
#[derive(Parser, Debug)]
#[command(name = "thinctl", version, about, long_about = ABOUT, after_help = exit::HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Print JSON instead of tables and text
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a pool in a new or empty directory
    Init(InitArgs),
    /// Use a thin pool made by dm-thin or LVM, in place
    Adopt(AdoptArgs),
    /// Make a volume
    Create {
        /// The new volume, POOL/VOL
        #[arg(value_name = "POOL/VOL")]
        volume: DeviceArg,
        /// Its size, a multiple of 512 bytes
        #[arg(long, value_parser = parse_volume_size)]
        size: u64,
        /// A file or block device that shows through until written; it must not change any more
        #[arg(long, value_name = "PATH")]
        origin: Option<PathBuf>,
    },
    /// Take snapshots of volumes of one pool, all at one instant
    CreateSnap {
        /// The new snapshots, POOL/VOL@SNAP
        #[arg(value_name = "POOL/VOL@SNAP", required = true)]
        snapshots: Vec<DeviceArg>,
    },
    /// Make a volume with the contents of a snapshot or volume, in constant time
    Clone {
        /// The snapshot or volume to clone
        #[arg(value_name = "POOL/VOL[@SNAP]")]
        source: DeviceArg,
        /// The new volume, in the same pool
        #[arg(value_name = "POOL/NEW")]
        volume: DeviceArg,
    },
    /// Delete volumes and snapshots
    Rm {
        /// What to delete
        #[arg(value_name = "POOL/VOL[@SNAP]", required = true)]
        devices: Vec<DeviceArg>,
    },
    /// Give a volume or snapshot another name
    Rename {
        /// Its name now
        #[arg(value_name = "POOL/VOL[@SNAP]")]
        from: DeviceArg,
        /// Its new name, in the same pool
        #[arg(value_name = "POOL/NEW[@SNAP]")]
        to: DeviceArg,
    },
    /// Change the size of a volume
    ///
    /// A volume that is attached can only be enlarged. Its block device is enlarged with it, unless its driver
    /// cannot do that (ublk before Linux 6.16), which is said; a file system on it never is.
    Resize {
        /// The volume
        #[arg(value_name = "POOL/VOL")]
        volume: DeviceArg,
        /// The new size, a multiple of 512 bytes
        #[arg(long, value_parser = parse_volume_size)]
        size: u64,
        /// Allow the volume to lose what lies beyond the new size
        #[arg(long)]
        shrink: bool,
    },
    /// Make a volume show again what its snapshot shows
    Rollback {
        /// The snapshot
        #[arg(value_name = "POOL/VOL@SNAP")]
        snapshot: DeviceArg,
    },
    /// Make a volume read only for good
    Freeze {
        /// The volume
        #[arg(value_name = "POOL/VOL")]
        volume: DeviceArg,
    },
    /// Enlarge a pool
    Grow(GrowArgs),
    /// Set how a pool or volume deals with lack of space
    ///
    /// Writes for which there is no data block wait, as with the kernel's thin pools, first come, first served, until
    /// the pool grows or something is deleted. After --no-space-timeout they fail with ENOSPC, and so do later
    /// ones, until there is space. Reads, and writes to blocks that are there, go on. While no daemon serves
    /// the pool nothing waits.
    ///
    /// What is said of a pool stands in its pool.toml. A running daemon follows at once.
    Set(SetArgs),
    /// List volumes and snapshots
    Ls {
        /// The pool
        pool: String,
    },
    /// Show a pool, a volume or a snapshot
    Info {
        /// POOL, POOL/VOL or POOL/VOL@SNAP
        #[arg(value_name = "POOL[/VOL[@SNAP]]")]
        what: String,
    },
    /// Show a pool in the words of the kernel's `dmsetup status`
    ///
    /// Transaction id, used and total metadata blocks of 4K (those that are kept back count as used), used and total
    /// data blocks, the held metadata root, `rw`, `ro`, `out_of_data_space` or `Fail`, whether discards are
    /// passed down, what happens without free data blocks, `needs_check` or `-`, and how few free metadata blocks are
    /// few. Before them stand 0, the sectors of the data store, and `thin-pool`.
    Status {
        /// The pool
        pool: String,
    },
    /// Show what has happened to a pool since its daemon began, one JSON value a line
    ///
    /// Each has a number, a time, the pool, and an event: opened; mode_changed (from, to, reason); low_water (store,
    /// free_bytes, total_bytes, percent), once each time that the mark is crossed; grown (store, from_bytes, to_bytes);
    /// no_space_timeout (seconds); auto_grow_failed (bytes, reason). The last 1000 are kept.
    Events(EventsArgs),
    /// Show a pool live: how full it is, and what is done with which volume
    ///
    /// Keys sort by requests (r), bytes (b), latency (l), mapped (m) or name (n); q ends. P50 and P99 are the times that
    /// half of the reads and writes since the last look, and 99 of 100, did not exceed; WAIT is how many writes wait for
    /// data space; EXCLUSIVE was counted a while ago. Elsewhere than on a terminal, and with --json (one object a
    /// line), what would be shown is printed each time.
    Top(TopArgs),
    /// Draw what was made from what, and who uses how much, exactly
    ///
    /// MAPPED is EXCLUSIVE, which deleting it alone would free, and SHARED, which others map, too. JSON has depths.
    Tree {
        /// The pool
        pool: String,
    },
    /// Show who uses how much, exactly
    Du {
        /// The pool
        pool: String,
    },
    /// Run the daemon in the foreground
    #[command(after_long_help = serve_args::HELP)]
    Serve(ServeArgs),
    /// Make a volume or snapshot a local block device
    Attach(AttachArgs),
    /// Undo an attachment, a persistent one for good
    Detach {
        /// The volume or snapshot, or its block device
        #[arg(value_name = "POOL/VOL[@SNAP]|DEV")]
        what: String,
    },
    /// Say which ways to local block devices work on this machine, and what the others lack
    Doctor,
    /// Verify metadata, counts and catalog without changing anything
    ///
    /// Damage is told of by the metadata block it is in; then, by name, which volumes and snapshots it costs,
    /// and which ranges of them: those that the block above leaves to a damaged one. Their mappings cannot be
    /// trusted; a repair leaves them out unless it finds them elsewhere. Counts, details and space maps cost
    /// nothing: a repair makes them anew.
    ///
    /// Leaks are counts that are higher than there are references: space that is lost, and no damage. The
    /// exit code is 0 if there is nothing else.
    ///
    /// A pool that is served is checked as of a commit made first, whose metadata blocks are not used again
    /// until the check is done; see --reclaim-leaks for one that is not.
    ///
    /// With --json: clean; needs_check; findings (severity, block, devices, costs: nothing,
    /// metadata_snapshot, mappings, unknown or everything, message), at most 1000; findings_dropped and
    /// damage_dropped, how many more; losses, the volumes and snapshots that lost mappings (device, name,
    /// is_all, ranges with first_block, last_block, offset and length in bytes, more_ranges); reclaimed
    /// (data_blocks, metadata_blocks), with
    /// --reclaim-leaks; devices, metadata_blocks_used and data_blocks_used, as counted.
    Check(CheckArgs),
    /// Write all mappings as XML that thin_restore reads
    Dump {
        /// The pool
        pool: String,
    },
    /// Write new metadata from a dump
    ///
    /// The dump is what `thinctl dump` or thin_dump wrote, without parts that devices share (<def>, <ref>). The
    /// metadata is as the dump says, with counts made anew, and is checked before it gets its name; `thinctl adopt`
    /// makes a pool of it and the data store. needs_check is not restored.
    ///
    /// A dump does not say which parts of their trees devices shared, so each gets a tree of its own: with many
    /// snapshots, the metadata takes more space than it did. Data blocks stay shared.
    ///
    /// Until it is done, FILE is called FILE.restoring; a block device has no superblock.
    Restore(RestoreArgs),
    /// Write new metadata with all that can be trusted in a pool's damaged metadata
    ///
    /// The damaged metadata is only read. What is not certain is left out, and listed: a wrong mapping would show
    /// one volume's data in another. So are volumes whose mappings are incomplete, with the ranges of blocks that
    /// may be missing; the exit code is 1 then. What was left out reads as zeros.
    ///
    /// Without --replace the pool stays as it is, and the new metadata lies beside the old, to be looked at. With
    /// it, the new metadata takes the old one's place, and the old is kept as metadata.damaged. What the intent
    /// log of a pool holds that was not closed is done again by whoever opens the repaired pool.
    ///
    /// Nobody may use the pool meanwhile. `thinctl check` says first whether there is anything to repair.
    Repair(RepairArgs),
    /// Show earlier commits of a pool that are still whole, or go back to one
    ///
    /// The superblocks of the last 16 commits are kept beside the pool. A commit is whole if all of its metadata is
    /// there, and each data block that it maps has been in use without a break, so that nobody else can have been
    /// given it. Where that is not certain, the volumes and ranges of blocks concerned are listed. Metadata is used again
    /// from the second next commit on, so that a commit is seldom whole for long; for longer there are snapshots.
    ///
    /// Going back undoes what changed names and mappings: a removal whose blocks were not given back yet, a rename,
    /// a rollback, a freeze. It does not undo writing: blocks that only one volume has are overwritten in place, and
    /// show what was written last. A snapshot never changes, so it shows what it showed.
    ///
    /// A superblock that is damaged is written anew by going back to the only commit that is shown then: the last that
    /// the intent log knows, of a pool that was not closed, or else the newest in the history. What the log holds is done
    /// again when the pool is opened next.
    ///
    /// Nobody may use the pool meanwhile, and else it must have been closed. There is no way back to what the pool is now.
    Rewind(RewindArgs),
    /// Write the contents of a volume or snapshot to standard output
    Read {
        /// The volume or snapshot
        #[arg(value_name = "POOL/VOL[@SNAP]")]
        device: DeviceArg,
        /// Where to begin, in bytes
        #[arg(long, default_value = "0", value_parser = parse_size)]
        offset: u64,
        /// How much; to the end unless given
        #[arg(long, value_parser = parse_size)]
        length: Option<u64>,
    },
    /// Write standard input to a volume
    Write {
        /// The volume
        #[arg(value_name = "POOL/VOL")]
        device: DeviceArg,
        /// Where to begin, in bytes
        #[arg(long, default_value = "0", value_parser = parse_size)]
        offset: u64,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page, or write one for each command
    Man {
        /// Write thinctl.1, thinctl-init.1 and so on into this directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// What makes a pool.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// The directory to make the pool in
    #[arg(value_name = "POOL")]
    pub pool: String,
    /// Size of the data store, a multiple of the block size; needed unless the store exists
    #[arg(long, value_parser = parse_positive_size)]
    pub size: Option<u64>,
    /// Size of a data block, a multiple of 64K up to 1G
    #[arg(long, default_value = "64K", value_parser = parse_positive_size)]
    pub block_size: u64,
    /// The metadata store, a file or block device; POOL/metadata unless given
    #[arg(long, value_name = "PATH")]
    pub metadata: Option<PathBuf>,
    /// The data store, a file or block device; POOL/data unless given
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Size of the metadata store; 64 bytes for each data block, at least 64M, unless given
    #[arg(long, value_parser = parse_positive_size)]
    pub metadata_size: Option<u64>,
    /// How the data store is read and written: `io` in POOL/pool.toml, which can be changed while nothing uses the pool
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub io: DataAccess,
}

/// What takes over a foreign pool.
#[derive(Args, Debug)]
pub struct AdoptArgs {
    /// The directory to make the pool in
    #[arg(value_name = "POOL")]
    pub pool: String,
    /// Its metadata, a file or block device
    #[arg(long, value_name = "PATH")]
    pub metadata: PathBuf,
    /// Its data, a file or block device
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// A thin device's name and size; others are called thin-ID and end with their last mapped block
    #[arg(long = "volume", value_name = "ID:NAME:SIZE[:EXTERNAL_ORIGIN]")]
    pub volumes: Vec<VolumeArg>,
    /// Never change the pool
    #[arg(long)]
    pub read_only: bool,
}

/// What makes metadata of a dump.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The dump; - for standard input
    pub dump: PathBuf,
    /// The new metadata: a file that does not exist, or a block device that begins with zeros
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Its size, a multiple of 4K; unless given, that of a new pool, or more if the mappings take more, and all
    /// of a block device
    #[arg(long, value_parser = parse_positive_size)]
    pub metadata_size: Option<u64>,
}

/// What is checked.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The pool
    pub pool: String,
    /// Give leaked space back, if leaks are all that is wrong and no daemon serves the pool; then check again
    ///
    /// The counts are corrected in one ordinary transaction, which a crash leaves done or undone. Space in
    /// the data store is given back to its file system, unless discard_passdown is off. What thin_check does
    /// with
    /// --auto-repair.
    #[arg(long)]
    pub reclaim_leaks: bool,
}

/// What repairs a pool.
#[derive(Args, Debug)]
pub struct RepairArgs {
    /// The pool; or its metadata alone, a file or block device
    #[arg(value_name = "POOL|METADATA")]
    pub pool: String,
    /// The new metadata: a file that does not exist, or a block device that begins with zeros; unless given, a file
    /// beside the old metadata called metadata.repaired
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// Put the new metadata in the old one's place, or have pool.toml name it if it was written with --to
    #[arg(long)]
    pub replace: bool,
    /// Size of a data block, for metadata without any superblock; a wrong one gives wrong data
    #[arg(long, value_parser = parse_positive_size)]
    pub block_size: Option<u64>,
}

/// What goes back to an earlier commit.
#[derive(Args, Debug)]
pub struct RewindArgs {
    /// The pool
    pub pool: String,
    /// Go back to the commit of this number, as listed without it
    #[arg(long, value_name = "NUMBER")]
    pub to: Option<u64>,
    /// Lose what was written to new blocks since, and volumes made since; volumes written since become a mix of old
    /// and new
    #[arg(long, requires = "to")]
    pub lose_later_writes: bool,
}

/// What enlarges a pool.
#[derive(Args, Debug)]
pub struct GrowArgs {
    /// The pool
    pub pool: String,
    /// New size of the data store, a multiple of the block size
    #[arg(long, value_parser = parse_positive_size, required_unless_present = "metadata_size")]
    pub size: Option<u64>,
    /// New size of the metadata store, a multiple of 4K
    #[arg(long, value_parser = parse_positive_size)]
    pub metadata_size: Option<u64>,
}

/// What changes how a pool or volume deals with space.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// The pool, or a volume that is to differ from it
    #[arg(value_name = "POOL[/VOL]")]
    pub what: String,
    /// Whether writes without data space fail at once; of a volume also: as its pool does
    #[arg(long, value_name = "yes|no|pool")]
    pub error_if_no_space: Option<OrPool<bool>>,
    /// How long they wait otherwise, in seconds; 0 is for ever; of a volume also: as its pool does
    #[arg(long, value_name = "SECONDS|pool")]
    pub no_space_timeout: Option<OrPool<u64>>,
    /// The free share of the data and of the metadata store, in percent, below which there is an event; 0 is never
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    pub low_water: Option<u8>,
    /// Grow the data store, a file, by itself, up to this size
    #[arg(long, value_name = "SIZE", value_parser = parse_positive_size)]
    pub auto_grow_max: Option<u64>,
    /// The used share, in percent, from which on it grows; 80 unless given
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=99))]
    pub auto_grow_at: Option<u8>,
    /// By how much it grows at a time; 1G unless given
    #[arg(long, value_name = "SIZE", value_parser = parse_positive_size)]
    pub auto_grow_by: Option<u64>,
    /// Do not grow it by itself any more
    #[arg(long, conflicts_with_all = ["auto_grow_max", "auto_grow_at", "auto_grow_by"])]
    pub no_auto_grow: bool,
}

/// A value of a volume's own, or that of its pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrPool<T> {
    /// As the pool does.
    Pool,
    /// This.
    Value(T),
}

impl FromStr for OrPool<bool> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "yes" => Ok(OrPool::Value(true)),
            "no" => Ok(OrPool::Value(false)),
            "pool" => Ok(OrPool::Pool),
            _ => Err("expected yes, no or pool".to_owned()),
        }
    }
}

impl FromStr for OrPool<u64> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pool" => Ok(OrPool::Pool),
            _ => text
                .parse()
                .map(OrPool::Value)
                .map_err(|_| "expected a number of seconds, or pool".to_owned()),
        }
    }
}

/// What shows events.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// The pool
    pub pool: String,
    /// Go on with what happens, until the daemon ends
    #[arg(long)]
    pub follow: bool,
}

/// What shows a pool live.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// The pool
    pub pool: String,
    /// The time between two looks, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_interval)]
    pub interval: Duration,
    /// Print what happens in one interval, and end
    #[arg(long)]
    pub once: bool,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    match seconds {
        Some(seconds @ 0.1..=3600.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds, 0.1 to 3600".to_owned()),
    }
}

/// What attaches a device.
#[derive(Args, Debug)]
pub struct AttachArgs {
    /// The volume or snapshot
    #[arg(value_name = "POOL/VOL[@SNAP]")]
    pub device: DeviceArg,
    /// Make it a ublk device, which outlives the daemon; what is used if it works and nothing else is
    /// asked for
    #[arg(long, conflicts_with_all = ["nbd", "fuse"])]
    pub ublk: bool,
    /// Make it a device of the kernel's NBD client, which outlives the daemon; used without being asked
    /// for where there is no ublk
    #[arg(long, conflicts_with = "fuse")]
    pub nbd: bool,
    /// Serve it as a FUSE file with a loop device on top
    #[arg(long)]
    pub fuse: bool,
    /// How its block device is made.
    #[command(flatten)]
    pub options: DeviceOptions,
    /// Mount its file system here, read only for what is read only
    #[arg(long, value_name = "MNT")]
    pub mount: Option<PathBuf>,
    /// Before mounting it, make a file system if nothing was ever written to it; one that is there is
    /// mounted as it is, and nothing is made over anything else
    #[arg(long, value_name = "TYPE", requires = "mount")]
    pub mkfs: Option<FileSystem>,
    /// Attach it again, in the same way, whenever the pool's daemon is started, until it is detached
    #[arg(long)]
    pub persist: bool,
}

impl AttachArgs {
    /// The way that was asked for.
    pub fn transport(&self) -> Option<Transport> {
        match (self.ublk, self.nbd, self.fuse) {
            (true, _, _) => Some(Transport::Ublk),
            (_, true, _) => Some(Transport::Nbd),
            (_, _, true) => Some(Transport::Fuse),
            _ => None,
        }
    }
}

/// How a block device is made; what is not given is up to how it is served.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DeviceOptions {
    /// Size of its sectors in bytes; ublk and NBD devices have 4096 unless given, loop devices 512
    #[arg(long, value_name = "BYTES")]
    pub sector_size: Option<SectorSize>,
    /// Queues, each served by a thread: of a ublk device 1 to 32, 1 unless given, but no more than there are
    /// processors; of an NBD device, whose connections they are, 2 to 64, one for each processor up to 4
    /// unless given
    #[arg(long, value_name = "N")]
    pub queues: Option<u16>,
    /// Requests that each queue of a ublk device takes at a time, 1 to 1024; 64 unless given
    #[arg(long, value_name = "N")]
    pub depth: Option<u16>,
    /// The largest request of a ublk device, a multiple of 64K up to 32M; 512K unless given. Times depth,
    /// times queues, it is the memory that the device comes to use, which may be 1G
    #[arg(long = "buffer", value_name = "SIZE", value_parser = parse_small_size)]
    pub buffer_bytes: Option<u32>,
}

impl DeviceOptions {
    /// Takes out what devices of this kind do not have, and returns the names of those options.
    pub fn retain_for(&mut self, transport: Transport) -> Vec<&'static str> {
        let mut without_use = Vec::new();
        if transport == Transport::Fuse && self.queues.take().is_some() {
            without_use.push("--queues");
        }
        if transport != Transport::Ublk {
            if self.depth.take().is_some() {
                without_use.push("--depth");
            }
            if self.buffer_bytes.take().is_some() {
                without_use.push("--buffer");
            }
        }
        without_use
    }
}

/// The smallest unit of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
pub enum SectorSize {
    /// What most programs expect.
    #[value(name = "512")]
    #[serde(rename = "512")]
    S512,
    /// A page, which is faster.
    #[value(name = "4096")]
    #[serde(rename = "4096")]
    S4096,
}

impl SectorSize {
    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            SectorSize::S512 => 512,
            SectorSize::S4096 => 4096,
        }
    }
}

/// A file system that can be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS; the volume needs 300M at least.
    Xfs,
}

impl FileSystem {
    /// What makes it.
    pub fn program(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "mkfs.ext4",
            FileSystem::Xfs => "mkfs.xfs",
        }
    }

    /// What brings that program, on Debian.
    pub fn package(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "e2fsprogs",
            FileSystem::Xfs => "xfsprogs",
        }
    }
}

/// `POOL/VOL` or `POOL/VOL@SNAP`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceArg {
    /// What stands before the last slash.
    pub pool: String,
    /// The name behind it.
    pub name: DeviceName,
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((pool, name)) = text.rsplit_once('/') else {
            return Err("expected POOL/VOL or POOL/VOL@SNAP".to_owned());
        };
        let name = name
            .parse()
            .map_err(|cause: pool::Error| cause.to_string())?;
        // Of `/vol` the pool is the root directory.
        let pool = if pool.is_empty() { "/" } else { pool };
        Ok(DeviceArg {
            pool: pool.to_owned(),
            name,
        })
    }
}

/// `ID:NAME:SIZE[:EXTERNAL_ORIGIN]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeArg {
    /// The thin id.
    pub id: u32,
    /// The name to give it.
    pub name: DeviceName,
    /// Its size in bytes.
    pub size: u64,
    /// What shows through where nothing is mapped.
    pub external_origin: Option<PathBuf>,
}

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(4, ':');
        let (Some(id), Some(name), Some(size)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("expected ID:NAME:SIZE or ID:NAME:SIZE:EXTERNAL_ORIGIN".to_owned());
        };
        let id = id.parse().ok().filter(|id| *id <= pool::ThinId::MAX.get());
        let id = id.ok_or_else(|| format!("thin id: expected 0 to {}", pool::ThinId::MAX))?;
        Ok(VolumeArg {
            id,
            name: name
                .parse()
                .map_err(|cause: pool::Error| cause.to_string())?,
            size: parse_volume_size(size).map_err(|cause| format!("size {size}: {cause}"))?,
            external_origin: parts
                .next()
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        })
    }
}

/// What clap says about a wrong command line, in one line.
pub fn usage_error(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let message = text.split("\n\nUsage:").next().unwrap_or(text);
    let message = message
        .split("\n\nFor more information")
        .next()
        .unwrap_or(message);
    let parts = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_last_component_is_the_volume() {
        let device: DeviceArg = "/srv/a/pool/prod@nightly".parse().unwrap();
        assert_eq!(
            (device.pool.as_str(), device.name.to_string()),
            ("/srv/a/pool", "prod@nightly".into())
        );
        let device: DeviceArg = "pool/prod".parse().unwrap();
        assert_eq!(
            (device.pool.as_str(), device.name.to_string()),
            ("pool", "prod".into())
        );
        for text in ["prod", "pool/", "pool/a@b@c", "pool/.hidden", "pool/a b"] {
            assert!(text.parse::<DeviceArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn adopted_volumes() {
        let volume: VolumeArg = "7:db:1G:/images/base:v2.raw".parse().unwrap();
        assert_eq!((volume.id, volume.size), (7, 1 << 30));
        assert_eq!(volume.external_origin, Some("/images/base:v2.raw".into()));
        assert!(
            "16777215:db:512"
                .parse::<VolumeArg>()
                .unwrap()
                .external_origin
                .is_none()
        );
        for text in [
            "",
            "1",
            "1:db",
            "16777216:db:1G",
            "-1:db:1G",
            "1:../db:1G",
            "1:db:100",
            "1:db:0",
        ] {
            assert!(text.parse::<VolumeArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn options_of_block_devices() {
        let parse = |more: &str| {
            let line = format!("thinctl attach p/v {more}");
            let parsed = Cli::try_parse_from(line.split_whitespace());
            parsed.map(|cli| match cli.command {
                Command::Attach(args) => args.options,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(parse("").unwrap(), DeviceOptions::default());
        let all = parse("--queues 4 --depth 128 --buffer 1M --sector-size 512").unwrap();
        let expected = DeviceOptions {
            sector_size: Some(SectorSize::S512),
            queues: Some(4),
            depth: Some(128),
            buffer_bytes: Some(1 << 20),
        };
        assert_eq!(all, expected);
        for wrong in [
            "--queues -1",
            "--queues 65536",
            "--depth x",
            "--buffer 0",
            "--buffer 4G",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }

        let retained = |transport| {
            let mut options = all;
            let without_use = options.retain_for(transport);
            (options, without_use)
        };
        assert_eq!(retained(Transport::Ublk), (all, vec![]));
        let (nbd, without_use) = retained(Transport::Nbd);
        assert_eq!(
            (nbd.queues, nbd.depth, nbd.buffer_bytes),
            (Some(4), None, None)
        );
        assert_eq!(without_use, ["--depth", "--buffer"]);
        let (fuse, without_use) = retained(Transport::Fuse);
        let only_sectors = DeviceOptions {
            sector_size: Some(SectorSize::S512),
            ..DeviceOptions::default()
        };
        assert_eq!(fuse, only_sectors);
        assert_eq!(without_use, ["--queues", "--depth", "--buffer"]);
    }

    #[test]
    fn wrong_command_lines_are_told_in_one_line() {
        for line in [
            "thinctl",
            "thinctl create p/v",
            "thinctl create p/v --size 1X",
            "thinctl fly",
            "thinctl ls",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            let message = usage_error(&error);
            assert!(
                !message.contains('\n') && !message.is_empty(),
                "{line}: {message}"
            );
        }
    }
}
