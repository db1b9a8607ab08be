//! Rides per second, and how long clients wait, against pgbench on the same server in the same minutes.

use std::collections::BTreeMap;
use std::future::pending;

use serde_json::json;

use super::{Bench, median};
use crate::load::keys::Keys;
use crate::load::{closed, open, percentile_ms};
use crate::report::{Bound, Measured, Point, Row};
use crate::servers::pgbench::Pgbench;
use crate::servers::process::Process;
use crate::servers::usage::Cpu;

const CONNECTIONS: [usize; 4] = [1, 8, 32, 256];
/// The open loop's rate as a share of the closed loop's: busy, but requests do not yet spend most of their time in a
/// queue.
const OPEN_SHARE: f64 = 0.7;

/// All rounds at one number of connections: rides per second, p50 and p99 in milliseconds.
#[derive(Debug, Default)]
struct Rounds {
    ours: [Vec<f64>; 3],
    pgbench: [Vec<f64>; 3],
    cpu: Vec<Cpu>,
}

/// One round of the service.
struct Ours {
    figures: [f64; 3],
    cpu: Cpu,
    /// Answers other than 201, by status.
    others: BTreeMap<u16, u64>,
}

pub(super) async fn measure(bench: &mut Bench) {
    let database = bench.postgres.fresh("rides").await;
    let pgbench = Pgbench::prepare(&bench.postgres).await;
    // Roles without a counterpart in pgbench stay off here.
    let process = Process::start("api", &database, bench.sandbox, &[]).await;
    let mut rounds: [Rounds; CONNECTIONS.len()] = Default::default();
    let mut failures = BTreeMap::new();
    for round in 0..bench.options.rounds {
        for (connections, rounds) in CONNECTIONS.into_iter().zip(&mut rounds) {
            eprintln!("round {} at {connections} connections", round + 1);
            let ours = measure_ours(bench, &process, connections).await;
            for (status, count) in ours.others {
                *failures.entry(status).or_insert(0) += count;
            }
            rounds.ours.iter_mut().zip(ours.figures).for_each(|(all, one)| all.push(one));
            rounds.cpu.push(ours.cpu);
            let theirs = measure_pgbench(bench, &pgbench, connections).await;
            rounds.pgbench.iter_mut().zip(theirs).for_each(|(all, one)| all.push(one));
        }
    }
    process.stop().await;
    tell(bench, &rounds, &failures);
    bench.postgres.drop_database(&database.name).await;
    bench.postgres.drop_database(&pgbench.database.name).await;
}

async fn measure_ours(bench: &mut Bench, process: &Process, connections: usize) -> Ours {
    let (warm_up, window) = (bench.options.warm_up, bench.options.window);
    bench.postgres.checkpoint().await;
    let cpu = || Cpu::of(process.pid, bench.postgres.pid(), bench.sandbox.pid);
    let before = cpu();
    let mut closed = closed::run(process.address, connections, Keys::Fresh, warm_up, window).await;
    // The warm-up counts on both sides.
    let cpu = cpu().each_since(before, closed.fresh);
    let rate = closed.per_second();
    bench.postgres.checkpoint().await;
    let mut open = open::run(process.address, connections, rate * OPEN_SHARE, (warm_up, window), pending()).await;
    let p50 = percentile_ms(&mut open.waits_us, 50.0);
    let p99 = percentile_ms(&mut open.waits_us, 99.0);
    let Cpu { service, postgres, sandbox, load } = cpu;
    eprintln!(
        "  ours     {rate:6.0} rides/s  p50 {p50:.2} ms  p99 {p99:.2} ms  \
         (CPU µs a ride: service {service:.0}, Postgres {postgres:.0}, sandbox {sandbox:.0}, load {load:.0})"
    );
    bench.report.detail(json!({
        "section": "rides", "connections": connections, "rides_per_second": rate, "p50_ms": p50, "p99_ms": p99,
        "cpu_us": { "service": service, "postgres": postgres, "sandbox": sandbox, "load_generator": load },
    }));
    for (status, count) in open.others {
        *closed.others.entry(status).or_default() += count;
    }
    Ours { figures: [rate, p50, p99], cpu, others: closed.others }
}

async fn measure_pgbench(bench: &mut Bench, pgbench: &Pgbench, connections: usize) -> [f64; 3] {
    let (warm_up, window) = (bench.options.warm_up, bench.options.window);
    bench.postgres.checkpoint().await;
    let cpu = || Cpu::of(std::process::id(), bench.postgres.pid(), bench.sandbox.pid);
    let before = cpu();
    let rate = pgbench.closed(connections, warm_up, window).await;
    // pgbench reports its rate and not its count; the warm-up is about as fast.
    let rides = rate * (warm_up + window).as_secs_f64();
    let postgres = cpu().each_since(before, rides as u64).postgres;
    bench.postgres.checkpoint().await;
    let waits = pgbench.open(connections, rate * OPEN_SHARE, warm_up, window).await;
    let (p50, p99) = (waits.p50_ms, waits.p99_ms);
    eprintln!(
        "  pgbench  {rate:6.0} rides/s  p50 {p50:.2} ms  p99 {p99:.2} ms  (CPU µs a ride: Postgres {postgres:.0})"
    );
    bench.report.detail(json!({
        "section": "pgbench", "connections": connections, "rides_per_second": rate, "p50_ms": p50, "p99_ms": p99,
        "cpu_us": { "postgres": postgres },
    }));
    [rate, p50, p99]
}

fn tell(bench: &mut Bench, rounds: &[Rounds], failures: &BTreeMap<u16, u64>) {
    let measured = |all: &[Vec<f64>; 3]| Measured {
        per_second: median(&all[0]),
        p50_ms: median(&all[1]),
        p99_ms: median(&all[2]),
    };
    let points: Vec<Point> = CONNECTIONS
        .into_iter()
        .zip(rounds)
        .map(|(connections, all)| Point { connections, ours: measured(&all.ours), pgbench: measured(&all.pgbench) })
        .collect();
    for (point, all) in points.iter().zip(rounds) {
        let of_round = |round: usize, base: f64| all.ours[0][round] / base;
        let beside = (0..all.ours[0].len()).map(|round| of_round(round, all.pgbench[0][round]));
        let Point { connections, ours, pgbench } = point;
        let note = format!(
            "p50 {:.2} ms, p99 {:.2} ms at 70 % of it; pgbench {}/s, {:.2} ms, {:.2} ms",
            ours.p50_ms,
            ours.p99_ms,
            crate::report::grouped(pgbench.per_second),
            pgbench.p50_ms,
            pgbench.p99_ms
        );
        let plural = if *connections == 1 { "connection" } else { "connections" };
        let row = Row::new(format!("rides, {connections} {plural}"), ours.per_second, "/s").note(note);
        bench.report.add(match connections {
            1 => row.ratio(median(&beside.collect::<Vec<_>>()), "pgbench at 1").target(Bound::AtLeast(0.7)),
            256 => {
                let best = |round: usize| rounds.iter().map(|all| all.pgbench[0][round]).fold(0.0, f64::max);
                let ratios: Vec<f64> = (0..all.ours[0].len()).map(|round| of_round(round, best(round))).collect();
                row.ratio(median(&ratios), "pgbench's best").target(Bound::AtLeast(1.5))
            }
            _ => row.ratio(median(&beside.collect::<Vec<_>>()), format!("pgbench at {connections}")),
        });
    }
    let failed: u64 = failures.values().sum();
    let row = Row::new("answers other than 201 to distinct keys", failed as f64, "").target(Bound::AtMost(0.0));
    bench.report.add(if failed > 0 { row.note(format!("by status: {failures:?}")) } else { row });
    if let Some(all) = rounds.last() {
        bench.report.add(processor_time(&all.cpu));
    }
    bench.report.comparison = Some(points);
}

/// Returns the processor time per ride at the most connections. All four processes share the cores.
fn processor_time(rounds: &[Cpu]) -> Row {
    let of = |part: fn(&Cpu) -> f64| median(&rounds.iter().map(part).collect::<Vec<_>>());
    let (service, postgres) = (of(|cpu| cpu.service), of(|cpu| cpu.postgres));
    let note = format!(
        "of which the service {service:.0}, Postgres {postgres:.0}, the sandbox {:.0}, the load generator {:.0}",
        of(|cpu| cpu.sandbox),
        of(|cpu| cpu.load)
    );
    let all = of(|cpu| cpu.service + cpu.postgres + cpu.sandbox + cpu.load);
    Row::new("processor time of a ride at 256 connections", all, "µs").note(note)
}
