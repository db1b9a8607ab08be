//! Tests against a real Redis: Sidekiq's format, and each job once whatever fails.

use atomic_phases::queue::Delivery;
use rocket_rides_atomic::config;
use rocket_rides_atomic::queues::redis::{Redis, Timestamps};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::queues::{self, batch, job, push};
use crate::support::app::TempDir;
use crate::support::broker::Broker;
use crate::support::client::Post;
use crate::support::process::{Process, arguments};
use crate::support::redis::RedisServer;
use crate::support::server::Server;
use crate::support::tls::Certificates;
use crate::support::{cluster, eventually};

fn settings(url: &str) -> config::Redis {
    config::Redis { url: Some(url.into()), ..config::Redis::default() }
}

fn open(settings: &config::Redis) -> Redis {
    Redis::new(settings, Uuid::from_u128(7)).expect("valid settings")
}

#[tokio::test]
async fn a_job_is_what_sidekiq_would_have_pushed() {
    let broker = RedisServer::start().await;
    let redis = open(&settings(&broker.url()));
    assert_eq!(push(&redis, &batch(1..=2)).await.unwrap().len(), 2);
    assert_eq!(broker.run::<Vec<String>>("SMEMBERS queues").await, ["default"]);
    let jobs: Vec<String> = broker.run("LRANGE queue:default 0 -1").await;
    let [newest, oldest] = [&jobs[0], &jobs[1]].map(|job| serde_json::from_str::<Value>(job).unwrap());
    assert_eq!((&newest["args"], &oldest["args"]), (&json!([{"n": 2}]), &json!([{"n": 1}])));
    let start = r#"{"class":"SendRideReceipt","args":[{"n":1}],"queue":"default","retry":true,"jid":""#;
    assert!(jobs[1].starts_with(start), "{}", jobs[1]);
    let jid = oldest["jid"].as_str().unwrap();
    assert!(jid.len() == 24 && jid.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{jid}");
    assert!(oldest["created_at"].as_f64() <= oldest["enqueued_at"].as_f64());
    for time in ["created_at", "enqueued_at"] {
        let at = oldest[time].as_f64().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(oldest[time].is_f64() && (now - 60.0..=now).contains(&at), "{at}");
    }
    assert_eq!(oldest.as_object().unwrap().len(), 7);
}

#[tokio::test]
async fn namespace_queue_class_and_times_are_a_matter_of_config() {
    let broker = RedisServer::start().await;
    let mut settings = settings(&broker.url());
    settings.namespace = "rides".to_owned();
    settings.queue = "mail".to_owned();
    settings.classes.insert("send_ride_receipt".to_owned(), "Billing::Receipt".to_owned());
    settings.timestamps = Timestamps::Milliseconds;
    push(&open(&settings), &batch(1..=1)).await.unwrap();
    assert_eq!(broker.run::<Vec<String>>("SMEMBERS rides:queues").await, ["mail"]);
    let pushed: Value = serde_json::from_str(&broker.run::<String>("LINDEX rides:queue:mail 0").await).unwrap();
    assert_eq!((&pushed["class"], &pushed["queue"]), (&json!("Billing::Receipt"), &json!("mail")));
    assert!(pushed["created_at"].is_u64() && pushed["enqueued_at"].as_u64() > Some(1_600_000_000_000));
    let mut keys: Vec<String> = broker.run("KEYS *").await;
    keys.sort();
    let marker = "rides:rocket_rides:pushed:00000000000000000000000000000007:0";
    assert_eq!(keys, ["rides:queue:mail", "rides:queues", marker]);
}

#[tokio::test]
async fn a_repeated_push_adds_nothing() {
    let broker = RedisServer::start().await;
    let settings = settings(&broker.url());
    queues::a_repeated_push_adds_nothing(&broker, || open(&settings)).await;
}

#[tokio::test]
async fn what_was_pushed_is_known_for_as_long_as_the_markers_live() {
    let broker = RedisServer::start().await;
    let redis = open(&settings(&broker.url()));
    let jobs = [job(65_535, "n"), job(65_536, "n"), job(1 << 40, "n")];
    push(&redis, &jobs).await.unwrap();
    let markers: Vec<String> = broker.run("KEYS rocket_rides:*").await;
    assert_eq!(markers.len(), 3);
    let mut bytes = 0;
    for marker in &markers {
        let (week, left) = (7 * 24 * 3600, broker.run::<i64>(&format!("TTL {marker}")).await);
        assert!((week - 60..=week).contains(&left), "{left}");
        bytes += broker.run::<usize>(&format!("STRLEN {marker}")).await;
    }
    assert_eq!(bytes, 8192 + 1 + 1);
    // Another installation's jobs have the same ids but are different jobs.
    let theirs = Redis::new(&settings(&broker.url()), Uuid::from_u128(8)).unwrap();
    push(&theirs, &jobs).await.unwrap();
    assert_eq!(broker.depth().await, 6);
    // A script that Redis has lost is sent again; a job whose marker Redis has lost is added again.
    let _: () = broker.run("SCRIPT FLUSH").await;
    push(&redis, &jobs).await.unwrap();
    assert_eq!(broker.depth().await, 6);
    let _: i64 = broker.run(&format!("DEL {}", markers.join(" "))).await;
    push(&redis, &jobs).await.unwrap();
    assert_eq!(broker.depth().await, 9);
}

#[tokio::test]
async fn a_job_that_no_worker_can_have_is_refused_alone() {
    let broker = RedisServer::start().await;
    let redis = open(&settings(&broker.url()));
    let pushed = push(&redis, &[job(1, "fine"), job(2, "2 bad"), job(3, "fine")]).await.unwrap();
    assert_eq!((&pushed[0], &pushed[2]), (&Delivery::Delivered, &Delivery::Delivered));
    assert!(matches!(&pushed[1], Delivery::Permanent(why) if why.contains("redis.classes")), "{pushed:?}");
    assert_eq!(queues::numbers(&broker).await, [1, 3]);
}

#[tokio::test]
async fn a_push_that_redis_refuses_half_way_marks_nothing() {
    let broker = RedisServer::start().await;
    let redis = open(&settings(&broker.url()));
    let _: () = broker.run("SET queue:default x").await;
    let error = push(&redis, &batch(1..=10)).await.unwrap_err();
    assert!(error.contains("WRONGTYPE"), "{error}");
    let _: () = broker.run("DEL queue:default").await;
    push(&redis, &batch(1..=10)).await.unwrap();
    assert_eq!(broker.depth().await, 10);
}

#[tokio::test]
async fn killed_between_push_and_delete_each_arrives_once() {
    queues::killed_between_push_and_delete::<RedisServer>().await;
}

#[tokio::test]
async fn redis_dies_while_jobs_are_pushed_and_each_arrives_once() {
    queues::the_queue_dies_while_jobs_are_pushed::<RedisServer>().await;
}

#[tokio::test]
async fn redis_may_be_down_at_start() {
    queues::down_at_start::<RedisServer>().await;
}

#[tokio::test]
async fn late_commits_are_neither_lost_nor_doubled() {
    queues::late_commits_are_neither_lost_nor_doubled::<RedisServer>().await;
}

#[tokio::test]
async fn redis_out_of_memory_costs_no_attempt() {
    let broker = RedisServer::start_with(&["--maxmemory", "1mb"]).await;
    queues::full_and_then_relieved(&broker, async || broker.run("CONFIG SET maxmemory 0").await).await;
}

#[tokio::test]
async fn a_server_that_promises_less_is_named_in_the_log() {
    let weak = ["--maxmemory-policy", "allkeys-lru", "--appendfsync", "everysec"];
    let broker = RedisServer::start_with(&weak).await;
    let (database, dir) = (cluster::database().await, TempDir::new());
    let settings = broker.settings();
    let process = Process::spawn(&arguments(Some(&database), dir.path(), &settings.each_ref().map(String::as_str)));
    assert_eq!(process.api().await.post(Post::default()).await.status, 201);
    eventually("the receipt", async || (broker.depth().await == 1).then_some(())).await;
    let log = process.log().join("\n");
    assert!(log.contains("maxmemory-policy is allkeys-lru, not noeviction"), "{log}");
    assert!(log.contains("appendfsync is everysec, not always") && !log.contains("appendonly is"), "{log}");
}

#[tokio::test]
async fn a_replica_takes_nothing_and_loses_nothing() {
    let broker = RedisServer::start().await;
    let _: () = broker.run("REPLICAOF 127.0.0.1 9").await;
    let redis = open(&settings(&broker.url()));
    let error = push(&redis, &batch(1..=10)).await.unwrap_err();
    assert!(error.contains("read only replica"), "{error}");
    let _: () = broker.run("REPLICAOF NO ONE").await;
    push(&redis, &batch(1..=10)).await.unwrap();
    assert_eq!(broker.depth().await, 10);
}

#[tokio::test]
async fn no_password_is_logged() {
    queues::no_password_is_logged::<RedisServer>().await;
}

#[tokio::test]
async fn tls_and_passwords_are_checked_and_never_told() {
    let certificates = Certificates::new();
    let file = |path: &std::path::Path| path.display().to_string();
    let server = Server::start("redis-server", "redis-server", |address, dir| {
        let (port, dir) = (address.port().to_string(), file(dir));
        let (ca, certificate, key) =
            (file(&certificates.ca), file(&certificates.certificate), file(&certificates.key));
        #[rustfmt::skip]
        let arguments = [
            "--port", "0", "--tls-port", &port, "--bind", "127.0.0.1", "--dir", &dir, "--save", "",
            "--tls-ca-cert-file", &ca, "--tls-cert-file", &certificate, "--tls-key-file", &key,
            "--tls-auth-clients", "no", "--user", "rides", "on", ">hunter2", "~*", "+@all", "--requirepass", "other",
        ];
        arguments.map(str::to_owned).to_vec()
    });
    let address = server.address;
    let with_ca = |url: String| config::Redis { ca_file: Some(certificates.ca.clone()), ..settings(&url) };
    let right = with_ca(format!("rediss://rides:hunter2@{address}"));
    assert_eq!(push(&open(&right), &batch(1..=1)).await, Ok(vec![Delivery::Delivered]));
    for (wrong, said) in [
        (with_ca(format!("rediss://rides:hunter3@{address}")), "cannot connect to Redis"),
        (settings(&format!("rediss://rides:hunter2@{address}")), "certificate"),
        (settings(&format!("redis://rides:hunter2@{address}")), "cannot connect to Redis"),
    ] {
        let error = push(&open(&wrong), &batch(2..=2)).await.unwrap_err();
        assert!(error.contains(said) && !error.contains("hunter"), "{error}");
    }
    for wrong in [
        with_ca("redis://rides:hunter2@localhost".to_owned()),
        config::Redis { ca_file: Some("/dev/null".into()), ..settings("rediss://rides:hunter2@localhost") },
        config::Redis { ca_file: Some("/nowhere".into()), ..settings("rediss://rides:hunter2@localhost") },
        settings("http://rides:hunter2@localhost"),
        settings("rides:hunter2"),
    ] {
        let error = Redis::new(&wrong, Uuid::nil()).unwrap_err();
        let error = atomic_phases::errors::chain(&error);
        assert!(error.starts_with("redis.") && !error.contains("hunter"), "{error}");
    }
}
