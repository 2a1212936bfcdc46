//! What works on this machine: `doctor`.

use serde::Serialize;

use super::Context;
use crate::protocol::{CallError, CallErrorKind};
use crate::table::{Align, render};
use crate::transports::{Lack, ORDER, Transport};

/// One transport.
#[derive(Serialize)]
struct Diagnosis {
    transport: Transport,
    works: bool,
    #[serde(flatten)]
    lack: Option<Lack>,
}

pub(super) async fn doctor(context: &Context) -> Result<(), CallError> {
    // A driver may take its time to answer.
    let examine = || ORDER.map(|transport| (transport, transport.probe()));
    let found = tokio::task::spawn_blocking(examine)
        .await
        .map_err(|cause| CallError::new(CallErrorKind::Other, cause.to_string()))?;
    let diagnoses = found.map(|(transport, probed)| Diagnosis {
        transport,
        works: probed.is_ok(),
        lack: probed.err(),
    });
    context.output.print(&diagnoses, |diagnoses| {
        let rows = diagnoses.iter().map(|diagnosis| {
            let told = match &diagnosis.lack {
                None => "works".to_owned(),
                Some(lack) => format!("{}: {}", lack.missing, lack.remedy),
            };
            vec![diagnosis.transport.name().to_owned(), told]
        });
        render(&[("TRANSPORT", Align::Left), ("STATE", Align::Left)], rows)
    })
}
