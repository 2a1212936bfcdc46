//! The page of `--http`, as far as it can be told without a browser: routes, headers, what is refused, and that
//! the JSON says what `thinctl` says. `tests/interop/http.sh` has the browser.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::bench::{Bench, noise};

/// The head of an answer, and its body.
fn ask(address: &str, request: &str, host: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(address: &str, path: &str) -> Value {
    let (head, body) = ask(address, &format!("GET {path}"), address);
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    serde_json::from_str(&body).unwrap_or_else(|cause| panic!("{path}: {cause}: {body}"))
}

#[test]
fn it_says_what_the_tool_says() {
    let bench = Bench::with_pool();
    bench.ok(&["init", "./q", "--size", "16M", "--metadata-size", "2M"]);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let daemon = bench.serve(&["p", "q", "--http", "127.0.0.1:0"]);
    let address = daemon.ready_value("http").to_owned();
    assert!(!address.ends_with(":0"), "{address}");
    bench.write(&["p/vol"], &noise(3 << 20, 1));
    bench.ok(&["create-snap", "p/vol@s"]);

    let status = get(&address, "/api/status");
    assert_eq!(status["daemon_pid"], daemon.pid());
    let pools = status["pools"].as_array().unwrap();
    let names: Vec<&Value> = pools.iter().map(|pool| &pool["name"]).collect();
    assert_eq!(names, ["p", "q"]);
    let info = bench.json(&["info", "p"]);
    for key in ["data_used_bytes", "data_total_bytes", "mode", "path"] {
        assert_eq!(pools[0]["pool"][key], info[key], "{key}");
    }
    assert_eq!(pools[0]["pool"]["data_used_bytes"], 3 << 20);
    let devices = pools[0]["devices"].as_array().unwrap();
    let names: Vec<&Value> = devices.iter().map(|device| &device["name"]).collect();
    assert_eq!(names, ["vol", "vol@s"]);
    assert_eq!(devices[1]["parent"], "vol");
    assert_eq!(pools[1]["devices"], Value::Array(Vec::new()));

    // Requests of clients are counted, and so far there is none.
    assert_eq!(devices[0]["operations"], Value::Array(Vec::new()));

    let history = |after: &str| get(&address, &format!("/api/history?pool=p{after}"));
    let samples = loop {
        match history("").as_array().unwrap().clone() {
            empty if empty.is_empty() => std::thread::yield_now(),
            samples => break samples,
        }
    };
    assert_eq!(samples[0]["number"], 1);
    assert_eq!(samples[0]["data_total_bytes"], info["data_total_bytes"]);
    assert_eq!(history("&after=1000"), Value::Array(Vec::new()));
    let events = get(&address, "/api/events?pool=p");
    assert_eq!(
        (&events[0]["event"], &events[0]["number"]),
        (&"opened".into(), &1.into())
    );
    daemon.stop();
}

#[test]
fn browsers_are_told_to_be_careful() {
    let bench = Bench::with_pool();
    let daemon = bench.serve(&["p", "--http", "127.0.0.1:0"]);
    let address = daemon.ready_value("http").to_owned();
    for (request, media_type) in [
        ("GET /", "text/html"),
        ("GET /assets/main.js", "text/javascript"),
        ("GET /assets/style.css", "text/css"),
        ("GET /assets/icon.svg", "image/svg+xml"),
        ("GET /api/status", "application/json"),
        ("GET /api/history?pool=none", "text/plain"),
    ] {
        let (head, body) = ask(&address, request, &address);
        let head = head.to_lowercase();
        for line in [
            &format!("content-type: {media_type}"),
            "content-security-policy: default-src 'self';",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
        ] {
            assert!(head.contains(line), "{request}: {line}: {head}");
        }
        assert!(!body.is_empty(), "{request}");
    }
    // What the page's own rules would stop, it must not need.
    let (_, page) = ask(&address, "GET /", &address);
    for inline in [
        "<style", "style=", "<script>", "onclick", "http://", "https://",
    ] {
        assert!(!page.contains(inline), "{inline}");
    }
    daemon.stop();
}

#[test]
fn what_it_does_not_answer() {
    let bench = Bench::with_pool();
    let daemon = bench.serve(&["p", "--http", "127.0.0.1:0"]);
    let address = daemon.ready_value("http").to_owned();
    for (request, host, status) in [
        ("GET /api/status", "localhost:8080", 200),
        ("GET /api/status", "example.org", 421),
        ("GET /", "127.0.0.1.example.org", 421),
        ("GET /api/history?pool=none", "localhost", 404),
        ("GET /api/history", "localhost", 400),
        ("GET /api/events?pool=p&after=-1", "localhost", 400),
        ("GET /assets/other.js", "localhost", 404),
        ("GET /assets/..%2fdashboard.rs", "localhost", 404),
        ("POST /api/status", "localhost", 405),
        ("DELETE /", "localhost", 405),
    ] {
        let (head, _) = ask(&address, request, host);
        let expected = format!("HTTP/1.1 {status}");
        assert!(head.starts_with(&expected), "{request}, {host}: {head}");
    }
    // Somebody waits for events: the daemon does not wait for him.
    let mut waiting = TcpStream::connect(&address).unwrap();
    write!(
        waiting,
        "GET /api/events?pool=p&after=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    daemon.stop();
    let place = bench.serve(&["p", "--http", "127.0.0.1:0"]);
    let taken = place.ready_value("http").to_owned();
    bench.ok(&["init", "./q", "--size", "16M", "--metadata-size", "2M"]);
    let refused = bench.thinctl(&["serve", "q", "--http", &taken]);
    let reason = format!("http: {taken}: address already in use");
    assert_eq!(refused.code, 5);
    assert!(refused.stderr.contains(&reason), "{}", refused.stderr);
    place.stop();
}
