//! Whether Postgres understands a mutant at all. One that it does not understand is like a typing error, and needs no
//! test.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rocket_rides_atomic::database::embedded::EmbeddedPostgres;
use tokio_postgres::{Client, Config, NoTls};

use super::DIR;
use super::statements::{Mutant, Statement};
use crate::suite::Failure;

/// Returns the mutants that Postgres does not understand, by index, each with its error.
pub async fn refused(
    root: &Path,
    statements: &[Statement],
    mutants: &[Mutant],
) -> Result<HashMap<usize, String>, Failure> {
    let postgres = EmbeddedPostgres::start(&root.join(DIR).join("postgres")).await?;
    let config = postgres.config();
    let schema =
        statements.iter().find(|statement| statement.file == "schema.sql").ok_or("no schema was applied")?;
    let with_schema = database(&config, "mutants_prepared").await?;
    with_schema.batch_execute(&schema.text).await?;
    let empty = database(&config, "mutants_applied").await?;
    let mut refused = HashMap::new();
    for (at, mutant) in mutants.iter().enumerate() {
        let statement = &statements[mutant.places[0].0];
        let is_script = statement.script.statements.len() > 1;
        let answer = if is_script {
            let answer = empty.batch_execute(&format!("BEGIN; {}", mutant.text)).await;
            empty.batch_execute("ROLLBACK").await?;
            answer
        } else {
            with_schema.prepare(&mutant.text).await.map(drop)
        };
        if let Err(error) = answer {
            let database_error = error.as_db_error().ok_or_else(|| error.to_string())?;
            // A script is executed as well, and may fail for other reasons.
            if !is_script || database_error.code().code().starts_with("42") {
                refused.insert(at, database_error.message().to_owned());
            }
        }
    }
    drop((with_schema, empty));
    postgres.stop(Duration::from_secs(10)).await;
    Ok(refused)
}

/// Creates an empty database of this name, and connects to it.
async fn database(config: &Config, name: &str) -> Result<Client, Failure> {
    let administrator = connect(config).await?;
    administrator.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
    administrator.batch_execute(&format!("CREATE DATABASE {name}")).await?;
    let mut own = config.clone();
    own.dbname(name);
    connect(&own).await
}

async fn connect(config: &Config) -> Result<Client, Failure> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
