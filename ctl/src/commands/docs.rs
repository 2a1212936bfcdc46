//! What is made from the definition of the command line: completions and man pages.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::output::{output_error, write_out};
use crate::protocol::CallError;
use crate::serve_args::DaemonCli;

pub(super) fn completions(shell: Shell) -> Result<(), CallError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "thinctl", &mut script);
    write_out(&script)
}

pub(super) fn man(out: Option<&Path>) -> Result<(), CallError> {
    let Some(directory) = out else {
        return write_out(&page(Cli::command())?);
    };
    let failed = |cause: &std::io::Error| CallError::io(directory.display(), cause);
    fs::create_dir_all(directory).map_err(|cause| failed(&cause))?;
    let mut thinctl = Cli::command();
    thinctl.build();
    let mut commands = vec![DaemonCli::command()];
    for command in thinctl
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let name = format!("thinctl-{}", command.get_name());
        commands.push(command.clone().name(name));
    }
    commands.push(thinctl);
    for command in commands {
        let file = directory.join(format!("{}.1", command.get_name()));
        fs::write(&file, page(command)?).map_err(|cause| CallError::io(file.display(), &cause))?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<Vec<u8>, CallError> {
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .map_err(|cause| output_error(&cause))?;
    Ok(page)
}
