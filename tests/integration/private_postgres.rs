//! The private Postgres: it runs exactly as long as the process.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::app::TempDir;
use crate::support::client::{Post, new_key};
use crate::support::eventually;
use crate::support::process::{Process, arguments};

async fn until_gone(pid: i32) {
    eventually("Postgres to be gone", async || (kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)).then_some(()))
        .await;
}

#[tokio::test]
async fn it_ends_with_the_process_and_keeps_everything() {
    let dir = TempDir::new();
    let arguments = arguments(None, dir.path(), &[]);
    let key = new_key();
    let mut answers = Vec::new();
    // Stopped in order, and by force: each time the next start finds every ride.
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        let mut process = Process::spawn(&arguments);
        let api = process.api().await;
        let pid: i32 = process.field("pid").await.parse().unwrap();
        answers.push(api.post(Post::default().key(&key)).await);
        process.signal(signal);
        process.exit().await;
        until_gone(pid).await;
    }
    assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body));
    assert!(!answers[0].is_replay() && answers[1].is_replay() && answers[2].is_replay());
}

#[tokio::test]
async fn when_it_dies_it_is_started_again() {
    let dir = TempDir::new();
    let process = Process::spawn(&arguments(None, dir.path(), &[]));
    let api = process.api().await;
    assert_eq!(api.post(Post::default()).await.status, 201);
    let pid: i32 = process.field("pid").await.parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let key = new_key();
    eventually("a ride after the crash", async || {
        let answer = api.post(Post::default().key(&key)).await;
        // 409: the lease of an attempt that lost its database, and could not release it.
        assert!(matches!(answer.status, 201 | 409 | 503), "{answer:?}");
        (answer.status == 201).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_processes_do_not_share_its_files() {
    let dir = TempDir::new();
    let arguments = arguments(None, dir.path(), &[]);
    let first = Process::spawn(&arguments);
    first.api().await;
    let mut second = Process::spawn(&arguments);
    assert_eq!(second.exit().await.code(), Some(69), "{:#?}", second.log());
    assert!(second.log().iter().any(|line| line.contains("database.url")), "{:#?}", second.log());
}
