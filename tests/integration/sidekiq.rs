//! An unmodified Sidekiq, from Debian's package, works the receipts of real rides.

use std::collections::BTreeSet;
use std::process::Stdio;

use futures_util::StreamExt;
use serde_json::Value;

use crate::support::app::{TempDir, TestApp};
use crate::support::broker::Broker;
use crate::support::client::Post;
use crate::support::eventually;
use crate::support::redis::RedisServer;

const RIDES: usize = 1000;

#[tokio::test]
async fn sidekiq_works_the_receipt_of_each_ride_once() {
    let (broker, dir) = (RedisServer::start().await, TempDir::new());
    let app = TestApp::with(|config| broker.configure(config)).await;
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let _sidekiq = tokio::process::Command::new("sidekiq")
        .args(["-r", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sidekiq/worker.rb"), "-c", "5"])
        .env("REDIS_URL", broker.url())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run sidekiq ({error}): apt-get install -y ruby-sidekiq"));
    let answers = futures_util::stream::iter(0..RIDES).map(|_| app.post(Post::default())).buffer_unordered(16);
    assert!(answers.all(async |answer| answer.status == 201).await);
    let said = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    let worked: Vec<String> = eventually(&format!("{RIDES} receipts"), async || {
        let worked: Vec<String> = broker.run("LRANGE worked 0 -1").await;
        assert!(!said().contains("Error"), "{}", said());
        (worked.len() >= RIDES).then_some(worked)
    })
    .await;
    app.until_count("staged_jobs", 0).await;
    let worked: Vec<Value> = worked.iter().map(|job| serde_json::from_str(job).unwrap()).collect();
    let jids: BTreeSet<_> = worked.iter().map(|job| job["jid"].as_str().unwrap()).collect();
    let rides: BTreeSet<_> = worked.iter().map(|job| job["args"]["ride_id"].as_i64().unwrap()).collect();
    let booked = app.query("SELECT id FROM rides", &[]).await;
    assert_eq!((worked.len(), jids.len()), (RIDES, RIDES));
    assert_eq!(rides, booked.iter().map(|row| row.get(0)).collect());
    assert_eq!(broker.run::<usize>("ZCARD retry").await + broker.run::<usize>("ZCARD dead").await, 0);
}
