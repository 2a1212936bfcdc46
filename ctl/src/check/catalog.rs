//! The catalog as a checker reads it: line by line, taking nothing from the pool's own reader.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// What the catalog says of one device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct CatalogEntry {
    pub(super) id: u32,
    pub(super) size: u64,
}

/// What the catalog says up to a transaction id.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct CatalogView {
    pub(super) entries: BTreeMap<String, CatalogEntry>,
    pub(super) deleting: BTreeSet<u32>,
    /// The first line that makes no sense, from 1, and why.
    pub(super) broken: Option<(usize, String)>,
    /// The transaction id of the last line.
    pub(super) transaction_id: u64,
    /// Whether there are lines of later transactions.
    pub(super) is_ahead: bool,
}

#[derive(Deserialize)]
struct Line {
    transaction_id: u64,
    op: String,
    id: Option<u32>,
    name: Option<String>,
    size: Option<u64>,
    from: Option<String>,
    to: Option<String>,
}

impl CatalogView {
    pub(super) fn read(content: &[u8], transaction_id: u64) -> Self {
        let mut view = CatalogView::default();
        let complete = content
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        // A last line that was cut short was never finished.
        let lines = content[..complete]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        for (index, line) in lines.enumerate() {
            let line: Line = match serde_json::from_slice(line) {
                Ok(line) => line,
                // A power cut left zeros where a line of the next transaction did not reach the disk.
                Err(_) if view.transaction_id == transaction_id && line.contains(&0) => {
                    view.is_ahead = true;
                    break;
                }
                Err(cause) => {
                    view.broken = Some((index + 1, cause.to_string()));
                    break;
                }
            };
            if line.transaction_id > transaction_id {
                view.is_ahead = true;
                break;
            }
            view.transaction_id = line.transaction_id;
            if let Err(reason) = view.apply(line) {
                view.broken = Some((index + 1, reason));
                break;
            }
        }
        view
    }

    fn apply(&mut self, line: Line) -> Result<(), String> {
        let missing = |field: &str| format!("{}: it has no {field}", line.op);
        let name = || line.name.clone().ok_or_else(|| missing("name"));
        match line.op.as_str() {
            "add" => {
                let entry = CatalogEntry {
                    id: line.id.ok_or_else(|| missing("id"))?,
                    size: line.size.ok_or_else(|| missing("size"))?,
                };
                let name = name()?;
                if self.entries.insert(name.clone(), entry).is_some() {
                    return Err(format!("{name} is added twice"));
                }
            }
            "rename" => {
                let from = line.from.clone().ok_or_else(|| missing("from"))?;
                let to = line.to.clone().ok_or_else(|| missing("to"))?;
                self.rename(&from, &to)?;
            }
            "resize" => {
                let size = line.size.ok_or_else(|| missing("size"))?;
                self.entry(&name()?)?.size = size;
            }
            "freeze" | "nospace" => {
                self.entry(&name()?)?;
            }
            "rollback" => {
                let id = line.id.ok_or_else(|| missing("id"))?;
                let entry = self.entry(&name()?)?;
                let old = std::mem::replace(&mut entry.id, id);
                if let Some(size) = line.size {
                    entry.size = size;
                }
                self.deleting.insert(old);
            }
            "remove" => {
                let name = name()?;
                let id = self.entry(&name)?.id;
                self.entries.remove(&name);
                self.deleting.insert(id);
            }
            "reclaimed" => {
                self.deleting.remove(&line.id.ok_or_else(|| missing("id"))?);
            }
            other => return Err(format!("unknown operation {other:?}")),
        }
        Ok(())
    }

    fn entry(&mut self, name: &str) -> Result<&mut CatalogEntry, String> {
        self.entries
            .get_mut(name)
            .ok_or_else(|| format!("{name} does not exist there"))
    }

    /// A volume takes its snapshots with it.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), String> {
        self.entry(from)?;
        let snapshots = format!("{from}@");
        let names: Vec<String> = self
            .entries
            .keys()
            .filter(|name| *name == from || (!from.contains('@') && name.starts_with(&snapshots)))
            .cloned()
            .collect();
        for name in names {
            let renamed = format!("{to}{}", &name[from.len()..]);
            let Some(entry) = self.entries.remove(&name) else {
                continue;
            };
            if self.entries.insert(renamed.clone(), entry).is_some() {
                return Err(format!("{renamed} exists already"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORY: &str = concat!(
        r#"{"transaction_id":1,"op":"add","id":0,"name":"a","size":512}"#,
        "\n",
        r#"{"transaction_id":2,"op":"add","id":1,"name":"a@s","size":512}"#,
        "\n",
        r#"{"transaction_id":3,"op":"rename","from":"a","to":"b"}"#,
        "\n",
        r#"{"transaction_id":4,"op":"resize","name":"b","size":1024}"#,
        "\n",
        r#"{"transaction_id":5,"op":"rollback","name":"b","id":2,"uuid":"","parent":"","size":512}"#,
        "\n",
        r#"{"transaction_id":6,"op":"remove","name":"b@s"}"#,
        "\n",
        r#"{"transaction_id":7,"op":"reclaimed","id":0}"#,
        "\n",
    );

    #[test]
    fn the_story_ends_with_its_transaction() {
        let view = CatalogView::read(STORY.as_bytes(), 3);
        assert!(view.is_ahead && view.broken.is_none());
        assert_eq!(view.entries.keys().collect::<Vec<_>>(), ["b", "b@s"]);
        let view = CatalogView::read(STORY.as_bytes(), 7);
        assert!(!view.is_ahead && view.broken.is_none());
        assert_eq!(view.entries["b"], CatalogEntry { id: 2, size: 512 });
        assert_eq!(view.deleting, BTreeSet::from([1]));
    }

    #[test]
    fn a_line_with_zeros_is_ahead_behind_all_others_and_nonsense_before() {
        let mut content = STORY.as_bytes().to_vec();
        let last = content.len() - 20;
        content[last..last + 8].fill(0);
        let view = CatalogView::read(&content, 6);
        assert!(view.is_ahead && view.broken.is_none());
        assert!(CatalogView::read(&content, 7).broken.is_some());
    }

    #[test]
    fn nonsense_is_found_and_a_line_cut_short_is_not() {
        let view = CatalogView::read(&STORY.as_bytes()[..STORY.len() - 5], 7);
        assert!(view.broken.is_none());
        for (text, reason) in [
            ("nonsense\n", "expected"),
            (
                "{\"transaction_id\":1,\"op\":\"fly\"}\n",
                "unknown operation",
            ),
            (
                "{\"transaction_id\":1,\"op\":\"remove\",\"name\":\"x\"}\n",
                "does not exist",
            ),
            (
                "{\"transaction_id\":1,\"op\":\"add\",\"name\":\"x\"}\n",
                "no id",
            ),
        ] {
            let (line, found) = CatalogView::read(text.as_bytes(), 1).broken.unwrap();
            assert!(line == 1 && found.contains(reason), "{found}");
        }
    }
}
