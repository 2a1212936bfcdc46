//! What is there: `ls`, `info`, `tree`, `du`.

use std::collections::{BTreeMap, BTreeSet};

use pool::{DeviceInfo, DeviceKind, DeviceName, DeviceUsage, Mode, NoSpacePolicy};
use serde::Serialize;

use super::{Context, unexpected};
use crate::cli::DeviceArg;
use crate::pool_dir::{Access, names_pool};
use crate::protocol::{Call, CallError, PoolInfo, Reply, UsageReport};
use crate::size::format_size;
use crate::space::AutoGrow;
use crate::table::{Align, pairs, render};

/// How to open a pool to see what may be written: to one who only reads, everything is read only.
const ALONE: Access = Access::Write;

pub(super) async fn list(context: &Context, pool: &str) -> Result<(), CallError> {
    context
        .output
        .print(&devices(context, pool).await?, |devices| {
            let columns = [
                ("NAME", Align::Left),
                ("KIND", Align::Left),
                ("SIZE", Align::Right),
                ("MAPPED", Align::Right),
                ("PARENT", Align::Left),
                ("CREATED", Align::Left),
            ];
            let row = |info: &DeviceInfo| {
                vec![
                    info.name.to_string(),
                    kind(info).to_owned(),
                    format_size(info.size),
                    format_size(info.mapped_bytes),
                    parent(info),
                    info.created.clone(),
                ]
            };
            render(&columns, devices.iter().map(row))
        })
}

async fn devices(context: &Context, pool: &str) -> Result<Vec<DeviceInfo>, CallError> {
    match context.call(pool, ALONE, Call::List).await? {
        Reply::Devices(devices) => Ok(devices),
        other => Err(unexpected(&other)),
    }
}

fn kind(info: &DeviceInfo) -> &'static str {
    match (info.kind, info.read_only) {
        (DeviceKind::Snapshot, _) => "snapshot",
        (DeviceKind::Volume, false) => "volume",
        (DeviceKind::Volume, true) => "frozen",
    }
}

fn parent(info: &DeviceInfo) -> String {
    info.parent
        .as_ref()
        .map_or_else(|| "-".to_owned(), DeviceName::to_string)
}

/// A directory with a `pool.toml` is a pool; anything else is a device in one.
pub(super) async fn info(context: &Context, what: &str) -> Result<(), CallError> {
    let device: Result<DeviceArg, String> = what.parse();
    match device {
        Ok(device) if !names_pool(what) && names_pool(&device.pool) => {
            device_info(context, &device).await
        }
        Err(reason) if !names_pool(what) && parent_is_pool(what) => {
            Err(CallError::invalid(format!("{what}: {reason}")))
        }
        _ => match context.call(what, ALONE, Call::Status).await? {
            Reply::Pool(info) => context.output.print(&info, describe_pool),
            other => Err(unexpected(&other)),
        },
    }
}

fn parent_is_pool(what: &str) -> bool {
    what.rsplit_once('/')
        .is_some_and(|(pool, name)| !name.is_empty() && names_pool(pool))
}

async fn device_info(context: &Context, device: &DeviceArg) -> Result<(), CallError> {
    let call = Call::Info {
        name: device.name.clone(),
    };
    match context.call(&device.pool, ALONE, call).await? {
        Reply::Device(info) => context.output.print(&info, describe_device),
        other => Err(unexpected(&other)),
    }
}

fn describe_pool(info: &PoolInfo) -> String {
    let status = &info.status;
    let used =
        |used: u64, total: u64| format!("{} of {} used", format_size(used), format_size(total));
    let mode = match status.mode {
        Mode::Write => "write",
        Mode::OutOfDataSpace => "out of data space",
        Mode::OutOfMetadataSpace => "out of metadata space",
        Mode::ReadOnly => "read only",
        Mode::Failed => "failed",
    };
    let reason = match status.mode_reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let mut lines = vec![
        ("pool", info.path.display().to_string()),
        ("uuid", info.uuid.clone()),
        ("mode", format!("{mode}{reason}")),
        (
            "data",
            used(status.data_used_bytes, status.data_total_bytes),
        ),
        ("data store", info.data.display().to_string()),
        (
            "metadata",
            used(status.metadata_used_bytes, status.metadata_total_bytes),
        ),
        ("metadata store", info.metadata.display().to_string()),
        ("block size", format_size(status.block_size)),
        ("without space", without_space(info.space.no_space())),
        ("grows by itself", growth(info.space.auto_grow)),
        ("transaction id", status.transaction_id.to_string()),
        ("volumes", status.volumes.to_string()),
        ("snapshots", status.snapshots.to_string()),
    ];
    if status.queued_writes > 0 {
        lines.push(("waiting writes", status.queued_writes.to_string()));
    }
    if status.deleting > 0 {
        lines.push(("being deleted", status.deleting.to_string()));
    }
    if status.needs_check {
        lines.push(("needs check", "yes: it can only be read".to_owned()));
    }
    if let Some(pid) = info.daemon_pid {
        lines.push(("served by", format!("pid {pid}")));
    }
    pairs(&lines)
}

fn describe_device(info: &DeviceInfo) -> String {
    let mut lines = vec![
        ("name", info.name.to_string()),
        ("kind", kind(info).to_owned()),
        (
            "size",
            format!("{} ({} bytes)", format_size(info.size), info.size),
        ),
        ("mapped", format_size(info.mapped_bytes)),
        (
            "read only",
            if info.read_only { "yes" } else { "no" }.to_owned(),
        ),
        ("parent", parent(info)),
        ("created", info.created.clone()),
        ("uuid", info.uuid.clone()),
        ("thin id", info.id.to_string()),
        ("open", info.open_count.to_string()),
    ];
    if let Some(origin) = &info.external_origin {
        lines.push(("external origin", origin.display().to_string()));
    }
    if let Some(errors) = info.no_space.error_if_no_space {
        let what = if errors { "writes fail" } else { "writes wait" };
        lines.push(("without space", what.to_owned()));
    }
    if let Some(seconds) = info.no_space.no_space_timeout {
        lines.push(("wait for space", waiting_time(seconds)));
    }
    pairs(&lines)
}

fn without_space(policy: NoSpacePolicy) -> String {
    if policy.error_if_no_space {
        return "writes fail".to_owned();
    }
    format!("writes wait {}", waiting_time(policy.no_space_timeout))
}

fn waiting_time(seconds: u64) -> String {
    match seconds {
        0 => "without end".to_owned(),
        seconds => format!("up to {seconds} s"),
    }
}

fn growth(auto_grow: Option<AutoGrow>) -> String {
    let Some(auto) = auto_grow else {
        return "no".to_owned();
    };
    format!(
        "at {} % used, by {}, up to {}",
        auto.threshold_percent,
        format_size(auto.step),
        format_size(auto.max)
    )
}

/// A device where it stands in the tree.
#[derive(Serialize)]
struct TreeNode {
    depth: usize,
    #[serde(flatten)]
    info: DeviceInfo,
    /// Bytes that only it maps; none of one that was made just now.
    exclusive_bytes: Option<u64>,
    /// Bytes that another maps, too.
    shared_bytes: Option<u64>,
    /// Whether it is the last child of its parent; so for each of its ancestors, outermost first.
    #[serde(skip)]
    last: Vec<bool>,
}

pub(super) async fn tree(context: &Context, pool: &str) -> Result<(), CallError> {
    let usage: BTreeMap<DeviceName, DeviceUsage> = usage_of(context, pool)
        .await?
        .devices
        .into_iter()
        .map(|usage| (usage.name.clone(), usage))
        .collect();
    let mut nodes = in_tree_order(devices(context, pool).await?);
    for node in &mut nodes {
        let usage = usage.get(&node.info.name);
        node.exclusive_bytes = usage.map(|usage| usage.exclusive_bytes);
        node.shared_bytes = usage.map(|usage| usage.shared_bytes);
    }
    context.output.print(&nodes, |nodes| {
        let row = |node: &TreeNode| {
            vec![
                format!("{}{}", branches(&node.last), node.info.name),
                lineage(&node.info).to_owned(),
                format_size(node.info.size),
                format_size(node.info.mapped_bytes),
                size_or_none(node.exclusive_bytes),
                size_or_none(node.shared_bytes),
            ]
        };
        let columns = [
            ("NAME", Align::Left),
            ("KIND", Align::Left),
            ("SIZE", Align::Right),
            ("MAPPED", Align::Right),
            ("EXCLUSIVE", Align::Right),
            ("SHARED", Align::Right),
        ];
        render(&columns, nodes.iter().map(row))
    })
}

/// As `kind`, and whether a volume was made from something.
fn lineage(info: &DeviceInfo) -> &'static str {
    match kind(info) {
        "volume" if info.parent.is_some() => "clone",
        kind => kind,
    }
}

fn size_or_none(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), format_size)
}

/// Parents before their children, with a stack of our own: lineage may be very deep.
fn in_tree_order(devices: Vec<DeviceInfo>) -> Vec<TreeNode> {
    let names: BTreeSet<DeviceName> = devices.iter().map(|info| info.name.clone()).collect();
    let mut children: BTreeMap<Option<DeviceName>, Vec<DeviceInfo>> = BTreeMap::new();
    for info in devices {
        let parent = info.parent.clone().filter(|parent| names.contains(parent));
        children.entry(parent).or_default().push(info);
    }
    let mut nodes = Vec::new();
    let mut stack: Vec<TreeNode> = Vec::new();
    let roots = children.remove(&None).unwrap_or_default();
    let node = |info, depth, last| TreeNode {
        depth,
        info,
        exclusive_bytes: None,
        shared_bytes: None,
        last,
    };
    let roots = roots.into_iter().rev();
    stack.extend(roots.map(|info| node(info, 0, Vec::new())));
    while let Some(next) = stack.pop() {
        let below = children
            .remove(&Some(next.info.name.clone()))
            .unwrap_or_default();
        for (index, info) in below.into_iter().rev().enumerate() {
            let mut last = next.last.clone();
            last.push(index == 0);
            stack.push(node(info, next.depth + 1, last));
        }
        nodes.push(next);
    }
    nodes
}

fn branches(last: &[bool]) -> String {
    let Some((own, ancestors)) = last.split_last() else {
        return String::new();
    };
    let mut text: String = ancestors
        .iter()
        .map(|last| if *last { "    " } else { "│   " })
        .collect();
    text.push_str(if *own { "└── " } else { "├── " });
    text
}

pub(super) async fn usage(context: &Context, pool: &str) -> Result<(), CallError> {
    let report = usage_of(context, pool).await?;
    context.output.print(&report, describe_usage)
}

async fn usage_of(context: &Context, pool: &str) -> Result<UsageReport, CallError> {
    match context.call(pool, Access::Read, Call::Usage).await? {
        Reply::Usage(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

fn describe_usage(report: &UsageReport) -> String {
    let columns = [
        ("NAME", Align::Left),
        ("MAPPED", Align::Right),
        ("EXCLUSIVE", Align::Right),
        ("SHARED", Align::Right),
        ("FREED IF DELETED", Align::Right),
    ];
    let rows = report.devices.iter().map(|device| {
        vec![
            device.name.to_string(),
            format_size(device.mapped_bytes),
            format_size(device.exclusive_bytes),
            format_size(device.shared_bytes),
            format_size(device.freed_if_deleted_bytes),
        ]
    });
    let total = &report.pool;
    let sum = format!(
        "\n{} of {} used: {} exclusive, {} shared\n",
        format_size(total.data_used_bytes),
        format_size(total.data_total_bytes),
        format_size(total.exclusive_bytes),
        format_size(total.shared_bytes)
    );
    render(&columns, rows) + &sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, parent: Option<&str>) -> DeviceInfo {
        DeviceInfo {
            name: name.parse().unwrap(),
            kind: DeviceKind::Volume,
            id: 0,
            uuid: String::new(),
            size: 512,
            mapped_bytes: 0,
            parent: parent.map(|parent| parent.parse().unwrap()),
            created: String::new(),
            read_only: false,
            external_origin: None,
            no_space: pool::NoSpaceOverride::default(),
            queued_writes: 0,
            open_count: 0,
        }
    }

    #[test]
    fn children_stand_below_their_parents() {
        let nodes = in_tree_order(vec![
            device("a", None),
            device("a@1", Some("a")),
            device("a@2", Some("a")),
            device("b", Some("a@1")),
            device("c", Some("gone")),
        ]);
        let drawn: Vec<String> = nodes
            .iter()
            .map(|node| format!("{}{}", branches(&node.last), node.info.name))
            .collect();
        assert_eq!(drawn, ["a", "├── a@1", "│   └── b", "└── a@2", "c"]);
    }
}
