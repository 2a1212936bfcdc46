//! Commands: a line of JSON each, on a Unix socket, answered by a line of JSON.
//!
//! ```text
//! "cut"                                  the power goes; says what it left
//! "power_on"                             it is back
//! {"full": true}                         nothing gets new space
//! {"fail": {"operation": "sync", "file": "log", "count": 1}}
//! "mend"                                 no more failures; says how many have not come
//! {"ignore_syncs": ["log", "."]}         these files, "." the directory, are synced no more: nobody is told
//! "evict"                                what failed syncs lost is read no more
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use serde::Deserialize;
use serde_json::{Value, json};

use super::disk::{Disk, Fault};

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    Cut,
    PowerOn,
    Full(bool),
    Fail(Fault),
    Mend,
    IgnoreSyncs(Vec<String>),
    Evict,
}

/// Serves one client after the other.
pub(super) fn serve(listener: &UnixListener, disk: &Disk) {
    for client in listener.incoming() {
        let served = client.and_then(|client| answer_all(client, disk));
        if let Err(cause) = served {
            eprintln!("a client on the control socket failed: {cause}");
        }
    }
}

fn answer_all(mut client: UnixStream, disk: &Disk) -> io::Result<()> {
    for line in BufReader::new(client.try_clone()?).lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(command) => carry_out(command, disk),
            Err(cause) => json!({"error": cause.to_string()}),
        };
        writeln!(client, "{answer}")?;
    }
    Ok(())
}

fn carry_out(command: Command, disk: &Disk) -> Value {
    match command {
        Command::Cut => return json!(disk.cut()),
        Command::PowerOn => disk.power_on(),
        Command::Full(is_full) => disk.set_full(is_full),
        Command::Fail(fault) => drop(disk.set_fault(Some(fault))),
        Command::Mend => return json!({"left": disk.set_fault(None)}),
        Command::IgnoreSyncs(names) => disk.ignore_syncs(names),
        Command::Evict => disk.evict(),
    }
    json!({})
}
