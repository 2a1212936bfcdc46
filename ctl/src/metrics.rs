//! Prometheus metrics of the pools a daemon serves.
//!
//! Nothing is counted here: each scrape reads the pools' own counters, away from the threads that commit and answer
//! calls. What would take a walk through the trees is counted beforehand (`usage_counts`). Metrics of a device
//! appear and disappear with it. `dashboards/README.md` has a table of all of them, which a test compares with
//! what a daemon tells.

mod device;
mod families;
mod pool;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use nbd_server::Server;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use crate::exports::address_of;
use crate::service::PoolService;
use families::{Families, Labels};

/// The page `/metrics`, on its own port.
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// What the metrics are about.
pub struct Sources {
    pools: Vec<Arc<PoolService>>,
    nbd: Vec<Arc<Server>>,
    process: ProcessCollector,
}

impl Sources {
    /// These pools, their NBD servers, and this process.
    pub fn new(pools: &[Arc<PoolService>], nbd: &[Arc<Server>]) -> Self {
        Sources {
            pools: pools.to_vec(),
            nbd: nbd.to_vec(),
            process: ProcessCollector::for_self(),
        }
    }
}

impl MetricsServer {
    /// Binds the port.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(MetricsServer { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the runtime ends.
    ///
    /// # Errors
    /// When the port fails.
    pub async fn serve(self, sources: Sources) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(page))
            .with_state(Arc::new(sources));
        axum::serve(self.listener, router).await
    }
}

async fn page(State(sources): State<Arc<Sources>>) -> Response {
    let text = spawn_blocking(move || {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&families(&sources), &mut text);
        encoded.map(|()| text).map_err(|cause| cause.to_string())
    });
    match text.await.map_err(|cause| cause.to_string()).flatten() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(cause) => (StatusCode::INTERNAL_SERVER_ERROR, cause).into_response(),
    }
}

/// Everything there is to tell, by metric.
fn families(sources: &Sources) -> Vec<MetricFamily> {
    let mut out = Families::default();
    out.gauge(
        "thinpool_build_info",
        "Always 1; the label says which version this is.",
        &Labels(vec![("version", env!("CARGO_PKG_VERSION").to_owned())]),
        1,
    );
    for service in &sources.pools {
        let labels = Labels(vec![("pool", service.dir.label())]);
        let devices = service.pool.devices();
        pool::metrics(&mut out, &labels, service, &devices);
        let exports = if sources.nbd.is_empty() {
            0
        } else {
            devices.len() as u64
        };
        out.gauge(
            "thinpool_exports",
            "Volumes and snapshots that are offered over NBD.",
            &labels,
            exports,
        );
        for info in &devices {
            let name = info.name.to_string();
            device::metrics(&mut out, &labels.with("volume", name), service, info);
        }
    }
    for server in &sources.nbd {
        server_metrics(&mut out, server);
    }
    let mut all = out.done();
    all.extend(sources.process.collect());
    all
}

fn server_metrics(out: &mut Families, server: &Server) {
    let labels = Labels(vec![("address", address_of(server).to_string())]);
    out.gauge(
        "thinpool_nbd_clients",
        "Clients connected to the address, past their handshake.",
        &labels,
        server.connections() as u64,
    );
    out.counter(
        "thinpool_nbd_connections_total",
        "Clients that have got past their handshake at the address.",
        &labels,
        server.connections_so_far(),
    );
}
