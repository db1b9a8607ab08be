//! What `verify` reports of refunds, as in [`super::rides`].

use super::stage::Rides;

#[tokio::test]
async fn each_wrong_turn_in_a_refunds_life_is_found() {
    let rides = Rides::new().await;
    let (unpaid, both) = ("of a ride that was not paid, or not by this user", "finished or refunded, and not both");
    rides.show("not paid", "UPDATE rides SET stripe_charge_id = NULL WHERE id = $d", &[unpaid]).await;
    rides.show("not by this user", "UPDATE refunds SET user_id = user_id + 1", &[unpaid]).await;
    rides
        .show(
            "finished otherwise",
            "UPDATE idempotency_keys SET response_code = 503 WHERE operation = 'refund'",
            &["finished with 503"],
        )
        .await;
    rides.show("finished, not made", "$unmake_refund", &[both]).await;
    rides
        .show(
            "made, not finished",
            "UPDATE idempotency_keys SET response_code = NULL WHERE operation = 'refund'",
            &[both],
        )
        .await;
    rides
        .show_without(
            "under way",
            "$unmake_refund; UPDATE idempotency_keys SET response_code = NULL WHERE operation = 'refund'",
            &[],
            both,
        )
        .await;
    rides.hold("its key is gone", "$forget_refund").await;
    rides.show("its key is gone, and it was not made", "$forget_refund; $unmake_refund", &[both]).await;
    rides.show("not in the books", "DELETE FROM refunds", &["ride $d: refunded at Stripe by re_"]).await;
    rides
        .show(
            "another at Stripe",
            "UPDATE refunds SET stripe_refund_id = 're_x'",
            &["refund 1: re_", "refund re_x: missing"],
        )
        .await;
}
