//! A worked job, broken at each message.

use super::scenario::Played;
use crate::kind::Kind;
use crate::lane::{Lane, Service};
use crate::proxy::Plan;
use crate::support::client::Post;
use crate::weather::Weather;

/// The worker's first statement.
const CLAIM: &str = "delete jobs + insert dead_jobs + update jobs";
/// The worker's last statement.
pub const LAST: &str = "execute update jobs + insert receipts";

/// The worker sends the receipt of a ride. However often it has to start again, there is one file for the ride.
pub async fn work(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    assert_eq!(lane.app.post(Post::default()).await.status, 201);
    let ride: i64 = lane.app.get("SELECT max(id) FROM rides").await;
    lane.deliver().await;
    lane.script.arm_from(CLAIM, plan);
    let mut service = Service::start(lane, "worker", Weather::FAIR).await;
    service.until_count("jobs WHERE finished_at IS NULL", 0).await;
    let played = Played::end(lane, &service);
    drop(service);

    assert_eq!(lane.app.count(&format!("receipts WHERE ride_id = {ride}")).await, 1, "recorded");
    let name = format!("receipt-{ride}-");
    let files = std::fs::read_dir(lane.receipts()).unwrap().map(|file| file.unwrap().file_name());
    assert_eq!(files.filter(|file| file.to_string_lossy().starts_with(&name)).count(), 1, "files");
    lane.assert_exactly_once(before, Kind::Ride.leaves(true)).await;
    played
}
