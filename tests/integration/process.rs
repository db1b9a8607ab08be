//! The process itself: signalled twice, started with invalid settings. `processes` kills it.

use std::time::{Duration, Instant};

use hyper::Method;
use nix::sys::signal::Signal;

use crate::support::app::TempDir;
use crate::support::client::{Http, Post, new_key};
use crate::support::process::{Process, arguments, free_port};
use crate::support::{cluster, eventually};

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = cluster::database().await;
    let dir = TempDir::new();
    let mut process = Process::spawn(&arguments(Some(&database), dir.path(), &["stripe_sandbox.faults.hold=1"]));
    let api = process.api().await;
    let client = tokio::spawn(async move { api.try_post(Post::default()).await });
    let watcher = cluster::connect(&database).await;
    eventually("a charge under way", async || {
        let held = watcher.query("SELECT FROM idempotency_keys WHERE recovery_point = 'ride_created'", &[]).await;
        (!held.unwrap().is_empty()).then_some(())
    })
    .await;
    process.signal(Signal::SIGINT);
    process.field("signal").await;
    let began = Instant::now();
    process.signal(Signal::SIGINT);
    assert_eq!(process.exit().await.code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(1));
    client.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn one_signal_ends_it_cleanly_and_soon() {
    let database = cluster::database().await;
    let dir = TempDir::new();
    let mut process = Process::spawn(&arguments(Some(&database), dir.path(), &["roles.simulator=true"]));
    let api = process.api().await;
    assert_eq!(api.post(Post::default()).await.status, 201);
    let began = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.exit().await.code(), Some(0), "{:#?}", process.log());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn nonsense_is_refused_in_one_line_with_its_own_exit_code() {
    let dir = TempDir::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("api.listen={}", taken.local_addr().unwrap());
    let nobody_there = format!("database.url=host=127.0.0.1 port={} user=x", free_port().port());
    let database = cluster::database().await;
    for (setting, code, said) in [
        ("api.lisen=x", 78, "api.lisen"),
        ("reaper.batch=many", 78, "reaper.batch"),
        ("idempotency.lock_timeout=1s", 78, "idempotency.lock_timeout"),
        ("stripe.api_base=ftp://x", 78, "stripe.api_base"),
        ("database.url=postgres://u:secret@h/d?sslmode=never", 78, "sslmode"),
        ("log.filter=====", 78, "log.filter"),
        (".a=1", 78, "section.key=value"),
        ("stripe.timeout=18446744073709551615s", 78, "stripe.timeout"),
        ("shutdown.notice=60s", 78, "shutdown.deadline"),
        ("roles.stripe_sandbox=false", 78, "stripe.api_base"),
        ("enqueuer.queue=redis", 78, "REDIS_URL"),
        ("enqueuer.queue=nats", 78, "NATS_URL"),
        ("enqueuer.queue=kafka", 78, "enqueuer.queue"),
        (nobody_there.as_str(), 69, "database"),
        (taken.as_str(), 1, "api.listen"),
    ] {
        let mut process = Process::spawn(&arguments(Some(&database), dir.path(), &[setting]));
        assert_eq!(process.exit().await.code(), Some(code), "{setting}: {:#?}", process.log());
        let last = eventually("a last line", async || {
            process.log().iter().find(|line| line.starts_with("rocket-rides-atomic: ")).cloned()
        })
        .await;
        assert!(last.contains(said) && !last.contains("secret"), "{setting}: {last}");
    }
    let mut usage = Process::spawn(&["--nonsense".to_owned()]);
    assert_eq!(usage.exit().await.code(), Some(2));
}

#[tokio::test]
async fn an_unread_log_costs_its_lines_and_nothing_else() {
    let database = cluster::database().await;
    let (dir, api) = (TempDir::new(), free_port());
    let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_rocket-rides-atomic"))
        .args(arguments(Some(&database), dir.path(), &[&format!("api.listen={api}")]))
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    drop(process.stderr.take());
    let http = Http::new(api);
    eventually("a process that is ready", async || http.is_ready().await.then_some(())).await;
    assert_eq!(http.post(Post::default()).await.status, 201);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), process.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn a_low_soft_limit_of_open_files_refuses_no_client() {
    let database = cluster::database().await;
    let (dir, address) = (TempDir::new(), free_port());
    let _process = tokio::process::Command::new("sh")
        .args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_rocket-rides-atomic")])
        .args(arguments(Some(&database), dir.path(), &[&format!("api.listen={address}")]))
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let http = Http::new(address);
    eventually("a process that is ready", async || http.is_ready().await.then_some(())).await;
    // Each client keeps its connection open, so that they are all open at once.
    let mut clients = Vec::new();
    for _ in 0..200 {
        let client = Http::new(address);
        assert!(client.is_ready().await, "after {} connections", clients.len());
        clients.push(client);
    }
}

#[tokio::test]
async fn variables_are_a_layer_between_file_and_flags() {
    let database = cluster::database().await;
    let dir = TempDir::new();
    let (api, url) = (free_port(), cluster::url(&database));
    let arguments: Vec<_> = arguments(None, dir.path(), &[])
        .into_iter()
        .filter(|argument| !argument.starts_with("api.listen"))
        .collect();
    // The flag before the removed argument has lost its value.
    let dangling = arguments.windows(2).position(|pair| pair[0] == "--set" && pair[1] == "--set").unwrap();
    let arguments = [&arguments[..dangling], &arguments[dangling + 1..]].concat();
    let port = api.port().to_string();
    let environment =
        [("API_PORT", port.as_str()), ("DATABASE_URL", url.as_str()), ("ROCKET_RIDES__ROLES__REAPER", "false")];
    let process = Process::spawn_with(&arguments, &environment);
    assert_eq!(process.field("api").await, format!("http://{api}"));
    assert!(process.field("off").await.contains("reaper"));
    assert_eq!(Http::new(api).call(Method::GET, "/readyz", "").await.status, 200);
}

#[tokio::test]
async fn logs_hold_one_line_a_request_and_no_secrets() {
    let database = cluster::database().await;
    let dir = TempDir::new();
    let more = ["stripe.api_key=sk_test_do_not_log_me", "log.filter=trace"];
    let mut process = Process::spawn(&arguments(Some(&database), dir.path(), &more));
    let api = process.api().await;
    let key = new_key();
    for _ in 0..2 {
        assert_eq!(api.post(Post::default().key(&key)).await.status, 201);
    }
    assert_eq!(api.post(Post::default().raising()).await.status, 500);
    process.signal(Signal::SIGTERM);
    process.exit().await;
    let lines = process.log();
    let requests: Vec<serde_json::Value> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &serde_json::Value| line["message"] == "request")
        .collect();
    assert_eq!(requests.len(), 3);
    assert_eq!((&requests[0]["status"], &requests[0]["reached"]), (&201.into(), &"finished".into()));
    assert_eq!((&requests[0]["replayed"], &requests[1]["replayed"]), (&false.into(), &true.into()));
    assert_eq!(requests[2]["reached"], "ride_created");
    for field in ["method", "path", "status", "key_id", "attempt", "ms"] {
        assert!(!requests[0][field].is_null(), "{field}");
    }
    for line in &lines {
        assert!(!line.contains("do_not_log_me") && !line.contains("@example.com"), "{line}");
    }
}
