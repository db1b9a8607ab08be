//! Properties of a statement, read from its syntax tree.

use sqlparser::ast::{
    Delete, FromTable, Insert, Query, Select, SelectItem, SetExpr, Statement, TableWithJoins, Update,
};

use super::expressions;

pub(super) fn writes(statement: &Statement) -> bool {
    match statement {
        Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => true,
        Statement::Query(query) => query_writes(query),
        _ => false,
    }
}

fn query_writes(query: &Query) -> bool {
    writes_itself(query)
        || query.with.as_ref().is_some_and(|with| with.cte_tables.iter().any(|cte| query_writes(&cte.query)))
}

pub(super) fn writes_itself(query: &Query) -> bool {
    matches!(query.body.as_ref(), SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_))
}

pub(super) fn returns_rows(query: &Query) -> bool {
    match query.body.as_ref() {
        SetExpr::Insert(Statement::Insert(Insert { returning, .. }))
        | SetExpr::Update(Statement::Update(Update { returning, .. }))
        | SetExpr::Delete(Statement::Delete(Delete { returning, .. })) => returning.is_some(),
        _ => true,
    }
}

pub(super) fn add_column(body: &mut SetExpr, column: &SelectItem) {
    match body {
        SetExpr::Select(select) => select.projection.push(column.clone()),
        SetExpr::SetOperation { left, right, .. } => {
            add_column(left, column);
            add_column(right, column);
        }
        SetExpr::Insert(Statement::Insert(Insert { returning, .. }))
        | SetExpr::Update(Statement::Update(Update { returning, .. }))
        | SetExpr::Delete(Statement::Delete(Delete { returning, .. })) => {
            returning.get_or_insert_default().push(column.clone());
        }
        _ => {}
    }
}

pub(super) fn deleted(delete: &Delete) -> &TableWithJoins {
    let (FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables)) = &delete.from;
    &tables[0]
}

/// Returns a select of the rows that a statement would delete.
pub(super) fn selected(delete: &Delete) -> Select {
    let Some(SetExpr::Select(select)) = expressions::parse_query("SELECT 1").map(|query| *query.body) else {
        unreachable!("a select")
    };
    Select {
        projection: delete.returning.clone().unwrap_or_default(),
        from: std::iter::once(deleted(delete)).chain(delete.using.iter().flatten()).cloned().collect(),
        selection: delete.selection.clone(),
        ..*select
    }
}

pub(super) fn empty_query() -> Query {
    expressions::parse_query("SELECT 1").expect("a query")
}
