//! The page itself: what a browser loads, as it is. Nothing is built, and nothing comes from elsewhere.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

/// The page; all it needs is below `/assets`.
pub(super) const INDEX: Html<&str> = Html(include_str!("assets/index.html"));

const ICON: Asset = Asset {
    media_type: "image/svg+xml",
    text: include_str!("assets/icon.svg"),
};

const STYLE: Asset = Asset {
    media_type: "text/css; charset=utf-8",
    text: include_str!("assets/style.css"),
};

/// A file of the page.
#[derive(Clone, Copy)]
pub(super) struct Asset {
    media_type: &'static str,
    text: &'static str,
}

impl Asset {
    const fn script(text: &'static str) -> Self {
        Asset {
            media_type: "text/javascript; charset=utf-8",
            text,
        }
    }
}

impl IntoResponse for Asset {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, self.media_type)], self.text).into_response()
    }
}

/// The file of this name.
pub(super) fn find(name: &str) -> Option<Asset> {
    let asset = match name {
        "icon.svg" => ICON,
        "style.css" => STYLE,
        "charts.js" => Asset::script(include_str!("assets/charts.js")),
        "daemon.js" => Asset::script(include_str!("assets/daemon.js")),
        "devices.js" => Asset::script(include_str!("assets/devices.js")),
        "dom.js" => Asset::script(include_str!("assets/dom.js")),
        "events.js" => Asset::script(include_str!("assets/events.js")),
        "format.js" => Asset::script(include_str!("assets/format.js")),
        "main.js" => Asset::script(include_str!("assets/main.js")),
        "rates.js" => Asset::script(include_str!("assets/rates.js")),
        _ => return None,
    };
    Some(asset)
}
