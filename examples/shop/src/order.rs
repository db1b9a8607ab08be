//! An order: reserve the product, have it paid, have it shipped. Two foreign calls, so two recovery points.

use atomic_phases::idempotency::{Attempt, Next, Opening, Operation, Phase, Phases, Response, Stop};
use atomic_phases::rules::Rule;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Places orders.
#[derive(Debug, Clone)]
pub struct Orders {
    pub http: reqwest::Client,
    pub bank: String,
    pub carrier: String,
}

/// What a client asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OrderParams {
    pub product_id: i64,
    pub card: String,
    pub address: String,
}

/// The recovery points, each with all that the foreign calls from there on send.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Reserved { order_id: i64, price: i32, card: String, address: String },
    Paid { order_id: i64, address: String },
}

impl Operation for Orders {
    const NAME: &'static str = "order";
    const PHASES: Phases = Phases {
        open: Opening {
            point: "reserved",
            admit: include_str!("reserve.sql"),
            effects: include_str!("reserved.sql"),
        },
        between: &[Phase { point: "paid", effects: include_str!("paid.sql") }],
        close: include_str!("shipped.sql"),
    };
    type Params = OrderParams;
    type State = Order;

    async fn advance(&self, attempt: &Attempt<OrderParams>, order: Order) -> Result<Next<Order>, Stop> {
        match order {
            Order::Reserved { order_id, price, card, address } => {
                let paid = self.call(attempt, &self.bank, json!({ "amount": price, "card": card })).await?;
                match paid["id"].as_str() {
                    Some(payment) => Ok(Next::Advance {
                        state: Order::Paid { order_id, address },
                        data: json!({ "payment": payment }),
                    }),
                    None => Ok(close(402, "The card was declined.", Value::Null)),
                }
            }
            Order::Paid { order_id, address } => {
                let sent = self.call(attempt, &self.carrier, json!({ "to": address, "order": order_id })).await?;
                Ok(close(201, "Your order is on its way.", json!({ "parcel": sent["id"] })))
            }
        }
    }

    fn rules(&self) -> Vec<Rule> {
        vec![Rule::rows("an order that is shipped was paid for, and its answer says so", include_str!("rule.sql"))]
    }
}

impl Orders {
    /// Makes one foreign call under the key that is stored for it: however often the call is made, the other side acts
    /// once. Only a certain answer leads on.
    async fn call(&self, attempt: &Attempt<OrderParams>, url: &str, body: Value) -> Result<Value, Stop> {
        attempt.has_time_for(crate::TIMEOUT)?;
        let key = attempt.lease.foreign_call.key.to_string();
        let answer = self.http.post(url).header("Idempotency-Key", key).json(&body).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).map_err(again)?;
        answer.json().await.map_err(again)
    }
}

fn again(error: reqwest::Error) -> Stop {
    Stop::Retry(error.into())
}

fn close(code: u16, text: &str, data: Value) -> Next<Order> {
    let response = Response::new(code, json!({ "message": text }).to_string());
    Next::Close { response, jobs: Vec::new(), data }
}
