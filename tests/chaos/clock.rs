//! A host whose clock is wrong steals nothing: leases, graces and ages are the database's to judge.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::say;
use crate::support::client::{Post, new_key};
use crate::support::process::{Process, arguments};
use crate::support::world::{TempDir, World};

/// Moves the wall clock of whoever loads it, as an administrator or a broken NTP server does. Compiled here, with
/// the compiler that Rust links with.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    const char *jump = getenv("CLOCK_JUMP_SECONDS");
    if (jump && clock == CLOCK_REALTIME) now->tv_sec += atol(jump);
    return result;
}
"#;

fn shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status().unwrap();
    assert!(compiled.success());
    library
}

#[tokio::test]
async fn a_host_clock_that_jumps_steals_nothing() {
    let dir = TempDir::new();
    let shim = shim(dir.path());
    for jump in ["31536000", "-31536000"] {
        let world = World::start().await;
        let key = new_key();
        // A charge under way, and a finished key: a year ahead both would be long overdue.
        let finished = new_key();
        assert_eq!(world.post(Post::default().key(&finished)).await.status, 201);
        world.script(&["hold"]).await;
        let (api, post) = (world.api.clone(), Post::default().key(&key));
        let held = tokio::spawn(async move { api.post(post).await });
        world.until_held().await;

        let sandbox = format!("stripe.api_base=http://{}", world.sandbox_address);
        let more = [
            sandbox.as_str(),
            "roles.stripe_sandbox=false",
            "idempotency.lock_timeout=30s",
            "completer.grace=10ms",
            "completer.poll_interval=10ms",
            "reaper.poll_interval=10ms",
            "reaper.retention=1h",
        ];
        let environment = [("LD_PRELOAD", shim.to_str().unwrap()), ("CLOCK_JUMP_SECONDS", jump)];
        let arguments = arguments(Some(&world.database_config), dir.path(), &more);
        let jumped = Process::spawn_with(&arguments, &environment);
        let api = jumped.api().await;
        let year: i32 = jumped.field("timestamp").await[..4].parse().unwrap();
        assert_ne!(year, this_year(&world).await, "the shim works");

        let answer = api.post(Post::default().key(&key)).await;
        assert_eq!(answer.status, 409, "the lease is respected: {answer:?}");
        // A request of its own that it abandons and completes shows that its completer has looked.
        assert_eq!(api.post(Post::default().raising()).await.status, 500);
        world.until_count("idempotency_keys WHERE response_code = 201 AND completer_attempts = 1", 1).await;
        assert!(api.post(Post::default().key(&finished)).await.is_replay(), "not reaped");
        world.release_held().await;
        assert_eq!(held.await.unwrap().status, 201);
        assert_eq!(world.charges().await.len(), 3);
    }
    say("clock: hosts a year ahead and a year behind stole nothing");
}

async fn this_year(world: &World) -> i32 {
    world.get("SELECT extract(year FROM now())::int").await
}
