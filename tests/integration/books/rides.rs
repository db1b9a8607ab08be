//! What `verify` reports of rides, their charges and their records: each offence that a rule can name is shown by the least
//! change that is one, and what only looks like one is passed over.

use super::stage::Rides;

#[tokio::test]
async fn each_wrong_turn_in_a_rides_life_is_found() {
    let rides = Rides::new().await;
    let another = "its ride is another one";
    rides.hold("nothing", "SELECT").await;
    rides.show("gone", "DELETE FROM rides WHERE id = $a", &[": 0 rides", "ride $a: recorded, not there"]).await;
    rides
        .show(
            "twice",
            "INSERT INTO rides (idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
                 SELECT idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon
                 FROM rides WHERE id = $a",
            &[": 2 rides"],
        )
        .await;
    rides.show("another user's", "UPDATE rides SET user_id = user_id + 1 WHERE id = $a", &[another]).await;
    rides.show("from elsewhere", "UPDATE rides SET origin_lat = origin_lat + 1 WHERE id = $a", &[another]).await;
    rides.show("from elsewhere", "UPDATE rides SET origin_lon = origin_lon + 1 WHERE id = $a", &[another]).await;
    rides.show("to elsewhere", "UPDATE rides SET target_lat = target_lat + 1 WHERE id = $a", &[another]).await;
    rides.show("to elsewhere", "UPDATE rides SET target_lon = target_lon + 1 WHERE id = $a", &[another]).await;
    rides
        .show(
            "at an unknown point",
            "UPDATE idempotency_keys SET recovery_point = 'elsewhere' WHERE id = $key_b",
            &["unfinished at elsewhere"],
        )
        .await;
    rides
        .show(
            "charged too soon",
            "UPDATE rides SET stripe_charge_id = 'ch_x' WHERE id = $b",
            &["charged, and unfinished", "charge ch_x of ride $b: missing"],
        )
        .await;
    rides
        .show(
            "finished otherwise",
            "UPDATE idempotency_keys SET response_code = 503 WHERE id = $key_a",
            &["finished with 503"],
        )
        .await;
    rides
        .show("not charged", "$unpay_a", &["201 with 0 charges", "ride $a: finished, and does not know charge ch_"])
        .await;
    rides
        .show_without(
            "declined and charged",
            "UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a",
            &["402 with 1 charges", "ride $a: a receipt without a 201 and its money"],
            "ride $a: 402 and charge",
        )
        .await;
    rides
        .show(
            "declined, and charged there",
            "UPDATE idempotency_keys SET response_code = 402 WHERE id = $key_a; $unpay_a",
            &["ride $a: 402 and charge ch_"],
        )
        .await;
    rides
        .show_without(
            "not a ride's key",
            "UPDATE idempotency_keys SET operation = 'another' WHERE id = $key_b; DELETE FROM rides WHERE id = $b",
            &["ride $b: recorded, not there"],
            ": 0 rides",
        )
        .await;
}

#[tokio::test]
async fn each_wrong_charge_is_found() {
    let rides = Rides::new().await;
    rides
        .show(
            "two charges",
            "UPDATE rides SET stripe_charge_id = 'ch_x' WHERE id = $a;
                 UPDATE idempotency_keys SET response_code = NULL WHERE id = $key_a",
            &["ride $a: charges ch_", " and ch_x", "charge ch_x of ride $a: missing"],
        )
        .await;
    rides
        .show_without(
            "charged, and not known yet",
            "$unpay_a; UPDATE idempotency_keys SET response_code = NULL WHERE id = $key_a",
            &["ride $a: a receipt without a 201 and its money"],
            "ch_",
        )
        .await;
    rides.show_without("its key is gone", "$forget_a", &[], "ride $a").await;
    rides
        .show(
            "its key is gone, and it does not know its charge",
            "$forget_a; $unpay_a",
            &[": its key is gone, and no ride knows it", "the decline of ride $a: missing"],
        )
        .await;
    rides
        .show(
            "made with another key than its own",
            "UPDATE idempotency_keys SET foreign_call_key = gen_random_uuid() WHERE id = $key_a; $unpay_a",
            &[": its key is gone, and no ride knows it"],
        )
        .await;
    rides
        .show(
            "for a user who does not ride",
            "UPDATE rides SET user_id = user_id + 1, stripe_charge_id = NULL WHERE id = $a",
            &[": its key is gone, and no ride knows it"],
        )
        .await;
    rides
        .show_without(
            "of a customer of another database",
            "$unpay_a; UPDATE users SET stripe_customer_id = 'cus_x'
                 WHERE id = (SELECT user_id FROM rides WHERE id = $a)",
            &["201 with 0 charges"],
            "finished, and does not know",
        )
        .await;
    rides
        .hold(
            "declined, and its key is gone",
            "DELETE FROM idempotency_keys WHERE id = (SELECT idempotency_key_id FROM rides WHERE id = $c)",
        )
        .await;
    rides
        .show(
            "never asked, and its key is gone",
            "DELETE FROM idempotency_keys WHERE id = $key_b",
            &["the decline of ride $b: missing"],
        )
        .await;
}

#[tokio::test]
async fn each_wrong_record_of_a_ride_is_found() {
    let rides = Rides::new().await;
    rides.show("none", "DELETE FROM audit_records WHERE resource_id = $a", &["ride $a: missing"]).await;
    rides
        .show(
            "two",
            "INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
                 SELECT action, data, origin_ip, resource_id, resource_type, user_id
                 FROM audit_records WHERE resource_id = $a",
            &["the record of ride $a: twice"],
        )
        .await;
    rides.hold("of something else", "INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
                 SELECT 'another', data, '::1', 4711, resource_type, user_id FROM audit_records WHERE resource_id = $a").await;
    rides
        .hold(
            "from its own address, which is no other's",
            "UPDATE audit_records SET origin_ip = '192.0.2.1' WHERE resource_id = $a;
                 UPDATE idempotency_keys SET origin_ip = '192.0.2.1' WHERE id = $key_a",
        )
        .await;
    rides
        .show(
            "from another address",
            "UPDATE audit_records SET origin_ip = '192.0.2.1' WHERE resource_id = $a",
            &["ride $a: recorded with another address"],
        )
        .await;
}
