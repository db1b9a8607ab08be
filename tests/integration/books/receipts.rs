//! What `verify` reports of receipts, as in [`super::rides`].

use super::stage::Rides;

#[tokio::test]
async fn each_wrong_receipt_is_found() {
    let rides = Rides::new().await;
    rides.show("none", "$unstage_a", &["the receipt of ride $a: missing"]).await;
    rides.show("none, and its key is gone", "$unstage_a; $forget_a", &["the receipt of ride $a: missing"]).await;
    rides
        .show_without(
            "none, and none is due",
            "$unstage_a; UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a",
            &["402 with 1 charges"],
            "the receipt of ride $a",
        )
        .await;
    rides
        .show(
            "to come, of a ride that is not finished",
            "UPDATE staged_jobs SET job_args = job_args || '{\"ride_id\": $b}' WHERE job_args ->> 'ride_id' = '$a'",
            &["ride $b: a receipt without a 201 and its money", "the receipt of ride $a: missing"],
        )
        .await;
    rides
        .show(
            "sent, for a ride that is not finished",
            "INSERT INTO receipts VALUES ($b, 4711, 'x')",
            &["ride $b: a receipt without a 201 and its money"],
        )
        .await;
    rides
        .show(
            "sent, for a ride that was declined after all",
            "$send_a; $unstage_a; UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a",
            &["ride $a: a receipt without a 201 and its money"],
        )
        .await;
    rides
        .show_without(
            "none, and it was never paid",
            "$forget_a; $unpay_a; $unstage_a",
            &["the decline of ride $a: missing"],
            "the receipt of ride $a",
        )
        .await;
    rides
        .show(
            "to come, of a ride that was not paid",
            "$forget_a; $unpay_a",
            &["ride $a: a receipt without a 201 and its money"],
        )
        .await;
    rides
        .show(
            "sent, of a ride that was not paid",
            "$forget_a; $unpay_a; DELETE FROM staged_jobs; $send_a",
            &["ride $a: a receipt without a 201 and its money"],
        )
        .await;
    rides.show("to come, of no ride", "UPDATE staged_jobs SET job_args = job_args || '{\"ride_id\": 4711}' WHERE job_args ->> 'ride_id' = '$a'", &["ride 4711: a receipt without a 201 and its money"]).await;
    rides
        .show_without(
            "said to be sent, and not recorded",
            "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
                 SELECT id, job_name, job_args, now(), now() FROM staged_jobs;
                 DELETE FROM staged_jobs; INSERT INTO receipts SELECT $d, id, 'x' FROM kept_staged_jobs LIMIT 1;
                 INSERT INTO refund_receipts VALUES (4711, 4712, 'x')",
            &[
                "ride $a: its job is finished, and no receipt was recorded",
                "refund 1: its job is finished, and no receipt was recorded",
            ],
            "ride $d: its job is finished",
        )
        .await;
    rides
        .show_without(
            "sent, while another job waits",
            "$send_a; $unstage_a; INSERT INTO dead_jobs VALUES (98, 'x', '{}', now(), now(), 'queue', 1, 'x');
                 INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES (97, 'x', '{}', now())",
            &[],
            "ride $a",
        )
        .await;
    rides
        .show(
            "none of the refund",
            "DELETE FROM staged_jobs WHERE job_name = 'send_refund_receipt'",
            &["the receipt of refund 1: missing"],
        )
        .await;
    rides
        .show_without(
            "none of a refund that was not made",
            "DELETE FROM staged_jobs WHERE job_name = 'send_refund_receipt'; $forget_refund; $unmake_refund",
            &["finished or refunded, and not both"],
            "the receipt of refund",
        )
        .await;
    rides
        .show(
            "to come, of a refund that was not made",
            "$forget_refund; $unmake_refund",
            &["refund 1: a receipt without a 201 and its money"],
        )
        .await;
    rides
        .show(
            "sent, of a refund that was not made",
            "$forget_refund; $unmake_refund;
                 DELETE FROM staged_jobs; INSERT INTO refund_receipts VALUES (1, 4711, 'x')",
            &["refund 1: a receipt without a 201 and its money"],
        )
        .await;
    rides
        .show(
            "sent, of no refund",
            "INSERT INTO refund_receipts VALUES (4711, 4712, 'x')",
            &["refund 4711: a receipt without a 201 and its money"],
        )
        .await;
    rides.hold("another job with a refund's id", "UPDATE staged_jobs SET job_args = job_args || '{\"refund_id\": 4711}' WHERE job_name = 'send_ride_receipt'").await;
    rides.hold("sent, and its key is gone", "$send_a; $unstage_a; $forget_a").await;
}
