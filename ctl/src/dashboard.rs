//! The page that `--http` serves: how full the pools are, what is made from what, what is done with it
//! now, and what has happened.
//!
//! `assets` is the page, which asks for JSON and draws it; `history` remembers how it was. Nothing can be
//! changed by it, and nothing is asked of any other machine. Who can reach the port can look, so it is on
//! this machine only; and so that no web site can look through a visitor's browser, by a name of its own
//! that leads to 127.0.0.1, only names that always mean this machine are answered.

mod assets;
mod history;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Json, Path, Query, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use pool::LATENCY_BOUNDS_US;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use self::assets::Asset;
use self::history::{History, Sample, record};
use crate::activity::{Activity, activity};
use crate::events::PoolEvent;
use crate::service::{PoolService, now};

/// How long a request for events waits for one.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(20);

/// How many events are sent, the latest.
const EVENTS_MAX: usize = 300;

/// What every answer says: scripts, styles and data from here only, shown in no other page, kept nowhere.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (header::CACHE_CONTROL, "no-store"),
];

/// The page, on its own port.
pub struct DashboardServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl DashboardServer {
    /// Binds the port.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(DashboardServer { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves, and remembers what the pools do, until the runtime ends.
    ///
    /// # Errors
    /// When the port fails.
    pub async fn serve(self, pools: Vec<Arc<PoolService>>) -> std::io::Result<()> {
        let pools = pools.into_iter().map(ShownPool::new).collect();
        let dashboard = Dashboard {
            started: now(),
            pools,
        };
        for pool in &dashboard.pools {
            tokio::spawn(record(Arc::clone(&pool.service), Arc::clone(&pool.history)));
        }
        axum::serve(self.listener, router(Arc::new(dashboard))).await
    }
}

/// What is shown.
struct Dashboard {
    /// When this daemon began to remember.
    started: String,
    pools: Vec<ShownPool>,
}

struct ShownPool {
    service: Arc<PoolService>,
    history: Arc<Mutex<History>>,
}

impl ShownPool {
    fn new(service: Arc<PoolService>) -> Self {
        ShownPool {
            service,
            history: Arc::default(),
        }
    }
}

impl Dashboard {
    fn pool(&self, name: &str) -> Result<&ShownPool, NoSuchPool> {
        let mut pools = self.pools.iter();
        let pool = pools.find(|pool| pool.service.dir.label() == name);
        pool.ok_or(NoSuchPool)
    }
}

struct NoSuchPool;

impl IntoResponse for NoSuchPool {
    fn into_response(self) -> Response {
        let message = "no pool of that name is served here: /api/status has those that are\n";
        (StatusCode::NOT_FOUND, message).into_response()
    }
}

fn router(dashboard: Arc<Dashboard>) -> Router {
    Router::new()
        .route("/", get(async || assets::INDEX))
        .route("/assets/{name}", get(asset))
        .route("/api/status", get(status))
        .route("/api/history", get(history))
        .route("/api/events", get(events))
        .layer(middleware::from_fn(guard))
        .with_state(dashboard)
}

/// Turns away who came by another machine's name, and says in each answer what a browser may do with it.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = if is_asked_by_local_name(request.headers()) {
        next.run(request).await
    } else {
        let message = "this page is at localhost, 127.0.0.1 or [::1], and has no other name\n";
        (StatusCode::MISDIRECTED_REQUEST, message).into_response()
    };
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Any port will do: through `ssh -L` it is another one.
fn is_asked_by_local_name(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    let is_loopback = |address: IpAddr| address.is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback)
}

async fn asset(Path(name): Path<String>) -> Result<Asset, StatusCode> {
    assets::find(&name).ok_or(StatusCode::NOT_FOUND)
}

/// How all pools are now.
#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    daemon_pid: u32,
    /// With the process id, this tells daemons apart: each counts anew.
    started: &'a str,
    /// What the counts of latencies are about.
    latency_bounds_us: &'static [u64],
    pools: Vec<PoolActivity>,
}

#[derive(Serialize)]
struct PoolActivity {
    /// As in exports and metrics.
    name: String,
    #[serde(flatten)]
    activity: Activity,
}

async fn status(State(dashboard): State<Arc<Dashboard>>) -> Response {
    let pools = dashboard.pools.iter().map(|pool| PoolActivity {
        name: pool.service.dir.label(),
        activity: activity(&pool.service),
    });
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        daemon_pid: std::process::id(),
        started: &dashboard.started,
        latency_bounds_us: &LATENCY_BOUNDS_US,
        pools: pools.collect(),
    })
    .into_response()
}

/// Which pool is asked about, and the number of the last sample or event that is known already.
#[derive(Deserialize)]
struct News {
    pool: String,
    #[serde(default)]
    after: u64,
}

async fn history(
    State(dashboard): State<Arc<Dashboard>>,
    Query(news): Query<News>,
) -> Result<Json<Vec<Sample>>, NoSuchPool> {
    let history = &dashboard.pool(&news.pool)?.history;
    Ok(Json(history.lock().after(news.after)))
}

/// Answers when there is an event, or after a while without any.
async fn events(
    State(dashboard): State<Arc<Dashboard>>,
    Query(news): Query<News>,
) -> Result<Json<Vec<PoolEvent>>, NoSuchPool> {
    let events = &dashboard.pool(&news.pool)?.service.events;
    // Whether there is any is seen below.
    let _ = tokio::time::timeout(EVENTS_TIMEOUT, events.follow(news.after)).await;
    let mut found = events.after(news.after);
    found.drain(..found.len().saturating_sub(EVENTS_MAX));
    Ok(Json(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let is_answered = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            is_asked_by_local_name(&headers)
        };
        for host in [
            "127.0.0.1:9501",
            "127.0.0.1",
            "localhost:1",
            "LOCALHOST",
            "[::1]:8080",
        ] {
            assert!(is_answered(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "127.0.0.1.example.org:9501",
            "localhost.example.org",
            "10.1.2.3:9501",
            "0.0.0.0:9501",
            "[::]:9501",
            "localhost example.org",
        ] {
            assert!(!is_answered(host), "{host}");
        }
        assert!(!is_asked_by_local_name(&HeaderMap::new()));
    }
}
