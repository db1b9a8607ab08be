//! Tests against a real NATS: its stream, and each job once whatever fails.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use atomic_phases::queue::Delivery;
use rocket_rides_atomic::config;
use rocket_rides_atomic::queues::nats::Nats;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::queues::{self, batch, job, push};
use crate::support::broker::Broker;
use crate::support::nats::NatsServer;
use crate::support::tls::Certificates;

fn settings(url: &str) -> config::Nats {
    config::Nats { url: Some(url.into()), ..config::Nats::default() }
}

fn open(settings: &config::Nats) -> Nats {
    Nats::new(settings, Uuid::from_u128(7)).expect("valid settings")
}

/// Returns the config of the default stream, for tests to change.
fn stream() -> Config {
    Config {
        name: "RIDES".to_owned(),
        subjects: vec!["rides.jobs.>".to_owned()],
        duplicate_window: config::Nats::default().duplicate_window,
        ..Config::default()
    }
}

#[tokio::test]
async fn a_message_says_all_there_is_to_say() {
    let broker = NatsServer::start().await;
    push(&open(&settings(&broker.url())), &batch(1..=2)).await.unwrap();
    let stream = broker.context().await.get_stream("RIDES").await.unwrap();
    let found = &stream.cached_info().config;
    assert_eq!(found.subjects, ["rides.jobs.>"]);
    assert_eq!(found.duplicate_window, Duration::from_secs(24 * 3600));
    assert_eq!((found.retention, found.discard), (RetentionPolicy::WorkQueue, DiscardPolicy::New));
    let message = stream.get_raw_message(1).await.unwrap();
    assert_eq!(message.subject.as_str(), "rides.jobs.send_ride_receipt");
    assert_eq!(message.headers.get("Nats-Msg-Id").unwrap().as_str(), "00000000000000000000000000000007:1");
    let mut body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
    let staged_at = body["staged_at"].take();
    assert!(staged_at.as_str().unwrap().starts_with("20") && staged_at.as_str().unwrap().ends_with('Z'));
    assert_eq!(body, json!({"id": 1, "name": "send_ride_receipt", "args": {"n": 1}, "staged_at": null}));
}

#[tokio::test]
async fn a_repeated_push_adds_nothing() {
    let broker = NatsServer::start().await;
    let settings = settings(&broker.url());
    queues::a_repeated_push_adds_nothing(&broker, || open(&settings)).await;
}

#[tokio::test]
async fn a_foreign_stream_is_refused_and_left_alone() {
    let broker = NatsServer::start().await;
    let context = broker.context().await;
    let theirs = Config { duplicate_window: Duration::from_secs(120), ..stream() };
    context.create_stream(theirs).await.unwrap();
    let error = push(&open(&settings(&broker.url())), &batch(1..=1)).await.unwrap_err();
    for said in ["nats.stream \"RIDES\"", "duplicate_window is 2m", "nats.duplicate_window (1day)"] {
        assert!(error.contains(said), "{error}");
    }
    let found = context.get_stream("RIDES").await.unwrap();
    assert_eq!(found.cached_info().config.duplicate_window, Duration::from_secs(120));
    assert_eq!(found.cached_info().state.messages, 0);
    // Our subjects are in a stream of another name, so there can be no stream of ours.
    let other = config::Nats { stream: "OTHER".to_owned(), ..settings(&broker.url()) };
    let error = push(&open(&other), &batch(1..=1)).await.unwrap_err();
    assert!(error.contains("nats.stream \"OTHER\"") && error.contains("overlap"), "{error}");
}

#[tokio::test]
async fn a_job_that_nats_can_never_take_is_refused_alone() {
    let broker = NatsServer::start_with("max_payload: 64KB");
    let mut large = job(2, "fine");
    large.args = RawValue::from_string(json!("x".repeat(100_000)).to_string()).unwrap();
    let jobs = [job(1, "fine"), large, job(3, "a.b"), job(4, "fine")];
    let pushed = push(&open(&settings(&broker.url())), &jobs).await.unwrap();
    assert_eq!((&pushed[0], &pushed[3]), (&Delivery::Delivered, &Delivery::Delivered));
    assert!(matches!(&pushed[1], Delivery::Permanent(why) if why.contains("max payload")), "{pushed:?}");
    assert!(matches!(&pushed[2], Delivery::Permanent(why) if why.contains("subject")), "{pushed:?}");

    let limited = Config { name: "SMALL".to_owned(), subjects: vec!["small.>".to_owned()], ..stream() };
    let limited = Config { max_message_size: 300, ..limited };
    broker.context().await.create_stream(limited).await.unwrap();
    let mut large = job(6, "fine");
    large.args = RawValue::from_string(json!("x".repeat(1000)).to_string()).unwrap();
    let small = config::Nats { stream: "SMALL".into(), subject_prefix: "small".into(), ..settings(&broker.url()) };
    let pushed = push(&open(&small), &[job(5, "fine"), large, job(7, "fine")]).await.unwrap();
    assert_eq!((&pushed[0], &pushed[2]), (&Delivery::Delivered, &Delivery::Delivered));
    assert!(matches!(&pushed[1], Delivery::Permanent(why) if why.contains("message size")), "{pushed:?}");
}

#[tokio::test]
async fn a_server_without_jetstream_takes_nothing() {
    let broker =
        NatsServer::start_with("no_auth_user: nobody, accounts { A { users: [{user: nobody, password: x}] } }");
    let error = push(&open(&settings(&broker.url())), &batch(1..=1)).await.unwrap_err();
    assert!(error.contains("nats.stream") && error.to_lowercase().contains("jetstream"), "{error}");
}

#[tokio::test]
async fn killed_between_push_and_delete_each_arrives_once() {
    queues::killed_between_push_and_delete::<NatsServer>().await;
}

#[tokio::test]
async fn nats_dies_while_jobs_are_pushed_and_each_arrives_once() {
    queues::the_queue_dies_while_jobs_are_pushed::<NatsServer>().await;
}

#[tokio::test]
async fn nats_may_be_down_at_start() {
    queues::down_at_start::<NatsServer>().await;
}

#[tokio::test]
async fn late_commits_are_neither_lost_nor_doubled() {
    queues::late_commits_are_neither_lost_nor_doubled::<NatsServer>().await;
}

/// The double fault that a work queue does not survive, as the documentation of `queues::nats` describes it.
#[tokio::test]
async fn after_a_restart_only_what_is_in_the_stream_is_known() {
    for (retention, worked_again) in [(RetentionPolicy::WorkQueue, 4), (RetentionPolicy::Limits, 0)] {
        let mut broker = NatsServer::start().await;
        broker.context().await.create_stream(Config { retention, ..stream() }).await.unwrap();
        let settings = settings(&broker.url());
        push(&open(&settings), &batch(1..=10)).await.unwrap();
        broker.work(4).await;
        push(&open(&settings), &batch(1..=10)).await.unwrap();
        let before = broker.depth().await;
        broker.server.kill();
        broker.server.restart();
        broker.context().await;
        push(&open(&settings), &batch(1..=10)).await.unwrap();
        assert_eq!(broker.depth().await, before + worked_again, "{retention:?}");
    }
}

#[tokio::test]
async fn a_full_stream_costs_no_attempt() {
    let broker = NatsServer::start().await;
    let context = broker.context().await;
    let limited = Config { max_messages: 100, discard: DiscardPolicy::New, ..stream() };
    context.create_stream(&limited).await.unwrap();
    queues::full_and_then_relieved(&broker, async || {
        assert_eq!(broker.depth().await, 100);
        context.update_stream(Config { max_messages: -1, ..limited.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn no_password_is_logged() {
    queues::no_password_is_logged::<NatsServer>().await;
}

#[tokio::test]
async fn tls_and_passwords_are_checked_and_never_told() {
    let certificates = Certificates::new();
    let broker = NatsServer::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\nauthorization {{ user: rides, password: \"hunter/2\" }}",
        certificates.certificate, certificates.key
    ));
    let address = broker.server.address;
    let with_ca = |url: String| config::Nats { ca_file: Some(certificates.ca.clone()), ..settings(&url) };
    let right = with_ca(format!("tls://rides:hunter%2F2@{address}"));
    assert_eq!(push(&open(&right), &batch(1..=1)).await, Ok(vec![Delivery::Delivered]));
    for (wrong, said) in [
        (with_ca(format!("tls://rides:hunter3@{address}")), "authorization violation"),
        (settings(&format!("tls://rides:hunter%2F2@{address}")), "certificate"),
    ] {
        let error = push(&open(&wrong), &batch(2..=2)).await.unwrap_err();
        assert!(error.contains(said) && !error.contains("hunter"), "{error}");
    }
    let token = NatsServer::start_with("authorization { token: hunter2 }");
    let right = settings(&format!("nats://hunter2@{}", token.server.address));
    assert_eq!(push(&open(&right), &batch(1..=1)).await, Ok(vec![Delivery::Delivered]));
    for wrong in [
        config::Nats { ca_file: Some("/nowhere".into()), ..settings("tls://rides:hunter2@localhost") },
        settings("http://rides:hunter2@localhost"),
        settings("nats://rides:hunter2@"),
    ] {
        let error = Nats::new(&wrong, Uuid::nil()).unwrap_err();
        let error = atomic_phases::errors::chain(&error);
        assert!(error.starts_with("nats.") && !error.contains("hunter"), "{error}");
    }
}
