//! What can be dropped or weakened in a statement, one clause at a time.
//!
//! One walk both lists the clauses and changes one of them: at each clause it calls [`Walk::hit`], which counts, and
//! returns `true` at the chosen number. So a clause that is listed can be changed, and nothing else can.

mod expressions;
mod schema;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt::Display;

use sqlparser::ast::{
    Assignment, AssignmentTarget, Cte, Delete, Ident, Insert, JoinConstraint, JoinOperator, LimitClause,
    ObjectName, OnConflictAction, OnInsert, Query, Select, SelectItem, SetExpr, Statement, TableFactor,
    TableWithJoins, Update, UpdateTableFromKind,
};

use tree::{add_column, deleted, empty_query, returns_rows, selected, writes, writes_itself};

use super::syntax::{Script, words};

/// The expression by which a statement commits without waiting for a flush.
const COMMIT_LATER: &str = "(SELECT set_config('synchronous_commit', 'off', true))";

/// A change of one clause.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// Its place in the statement: the CTE, the table, the column, the trigger. Changes in different scopes can be made
    /// at once.
    pub scope: String,
    /// What is changed, and to what.
    pub what: String,
}

impl Change {
    /// Returns scope and change in one line.
    pub fn clause(&self) -> String {
        let Self { scope, what } = self;
        if scope.is_empty() { what.clone() } else { format!("{scope}: {what}") }
    }
}

/// Returns all changes that can be made to this script. [`apply`] takes their indexes.
pub fn changes(script: &Script) -> Vec<Change> {
    let mut walk = Walk { chosen: None, scope: Vec::new(), found: Vec::new() };
    walk.script(&mut script.clone());
    let found = walk.found;
    // Two clauses of one scope may have the same text.
    let numbered = |at: usize| {
        let mut change = found[at].clone();
        let alike = found[..at].iter().filter(|other| **other == change).count();
        if alike > 0 {
            change.what = format!("{} (number {})", change.what, alike + 1);
        }
        change
    };
    (0..found.len()).map(numbered).collect()
}

/// Returns the script with these changes made, at most one of each scope.
pub fn apply(script: &Script, chosen: &[usize]) -> Script {
    let mut changed = script.clone();
    let mut chosen = chosen.to_vec();
    // The last first: a change leaves the numbers before its own as they are.
    chosen.sort_unstable_by(|a, b| b.cmp(a));
    for number in chosen {
        Walk { chosen: Some(number), scope: Vec::new(), found: Vec::new() }.script(&mut changed);
    }
    changed
}

struct Walk {
    chosen: Option<usize>,
    scope: Vec<String>,
    found: Vec<Change>,
}

impl Walk {
    /// Records a change, and returns whether it is to be made.
    fn hit(&mut self, what: impl Display) -> bool {
        self.found.push(Change { scope: self.scope.join("."), what: what.to_string() });
        self.chosen == Some(self.found.len() - 1)
    }

    fn within<T>(&mut self, scope: impl Display, walk: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(scope.to_string());
        let walked = walk(self);
        self.scope.pop();
        walked
    }

    /// Drops one of these, if one is chosen.
    fn drop_one<T: Display>(&mut self, items: &mut Vec<T>, kind: &str) {
        if let Some(at) = (0..items.len()).find(|&at| self.hit(format!("drop {kind}{}", items[at]))) {
            items.remove(at);
        }
    }

    fn script(&mut self, script: &mut Script) {
        if let [statement] = script.statements.as_mut_slice() {
            self.commit_setting(statement);
            self.statement(statement);
        } else {
            self.statements(&mut script.statements);
        }
    }

    fn statement(&mut self, statement: &mut Statement) {
        match statement {
            Statement::Query(query) => self.query(query),
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            _ => {}
        }
    }

    /// A statement that writes, and does not set how it commits, has its commit flushed.
    fn commit_setting(&mut self, statement: &mut Statement) {
        if statement.to_string().contains("synchronous_commit") || !writes(statement) {
            return;
        }
        if self.hit("commit without a flush") {
            let column = SelectItem::ExprWithAlias {
                expr: expressions::parse(COMMIT_LATER),
                alias: Ident::new("commit_later"),
            };
            match statement {
                Statement::Query(query) => add_column(&mut query.body, &column),
                Statement::Insert(Insert { returning, .. })
                | Statement::Update(Update { returning, .. })
                | Statement::Delete(Delete { returning, .. }) => {
                    returning.get_or_insert_default().push(column);
                }
                _ => {}
            }
        }
    }

    fn query(&mut self, query: &mut Query) {
        let text = query.to_string();
        if let Some(with) = &mut query.with {
            let unused = |cte: &Cte| {
                let name = &cte.alias.name.value;
                writes_itself(&cte.query)
                    && (!returns_rows(&cte.query) || words(&text).iter().filter(|word| *word == name).count() == 1)
            };
            let dropped = (0..with.cte_tables.len()).find(|&at| {
                unused(&with.cte_tables[at])
                    && self.within(&with.cte_tables[at].alias.name, |walk| walk.hit("drop the whole of it"))
            });
            if let Some(at) = dropped {
                with.cte_tables.remove(at);
            }
            for cte in &mut with.cte_tables {
                let used = !unused(cte);
                self.within(cte.alias.name.clone(), |walk| walk.cte(cte, used));
            }
            if with.cte_tables.is_empty() {
                query.with = None;
            }
        }
        self.set_expression(&mut query.body);
        if let Some(order) = &query.order_by
            && self.hit(format!("drop {order}"))
        {
            query.order_by = None;
        }
        if let Some(LimitClause::LimitOffset { limit: Some(limit), .. }) = &query.limit_clause
            && self.hit(format!("drop LIMIT {limit}"))
        {
            query.limit_clause = None;
        }
        self.locks(query);
    }

    fn locks(&mut self, query: &mut Query) {
        let Some(lock) = query.locks.first_mut() else { return };
        if let Some(nonblock) = &lock.nonblock
            && self.hit(format!("drop {nonblock}"))
        {
            lock.nonblock = None;
        }
        if self.hit(format!("drop {lock}")) {
            query.locks.clear();
        }
    }

    fn cte(&mut self, cte: &mut Cte, used: bool) {
        if cte.materialized.is_some() && self.hit("drop MATERIALIZED") {
            cte.materialized = None;
        }
        if used && writes_itself(&cte.query) {
            self.write_nothing(&mut cte.query);
        }
        self.query(&mut cte.query);
    }

    /// The CTE stays, because others select from it, but it writes nothing: rows are selected and not deleted, or no
    /// row is inserted.
    fn write_nothing(&mut self, query: &mut Query) {
        match query.body.as_mut() {
            SetExpr::Delete(Statement::Delete(delete))
                if self.hit(format!("select what is deleted from {}", deleted(delete))) =>
            {
                *query.body = SetExpr::Select(Box::new(selected(delete)));
            }
            SetExpr::Insert(Statement::Insert(Insert { source: Some(source), table, .. })) => {
                if let SetExpr::Select(select) = source.body.as_mut()
                    && self.hit(format!("insert nothing into {table}"))
                {
                    select.selection = Some(expressions::parse("false"));
                }
            }
            // An update is dropped column by column.
            _ => {}
        }
    }

    fn set_expression(&mut self, body: &mut Box<SetExpr>) {
        match body.as_mut() {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            SetExpr::Insert(statement) | SetExpr::Update(statement) | SetExpr::Delete(statement) => {
                self.statement(statement);
            }
            SetExpr::SetOperation { left, op, right, .. } => {
                let placeholder = || Box::new(SetExpr::Query(Box::new(empty_query())));
                if self.hit(format!("drop what stands before {op}")) {
                    *body = std::mem::replace(right, placeholder());
                } else if self.hit(format!("drop what stands after {op}")) {
                    *body = std::mem::replace(left, placeholder());
                } else {
                    self.set_expression(left);
                    self.set_expression(right);
                }
            }
            _ => {}
        }
    }

    fn select(&mut self, select: &mut Select) {
        self.columns(&mut select.projection);
        self.tables(&mut select.from);
        self.condition(&mut select.selection, "WHERE ");
        self.condition(&mut select.having, "HAVING ");
    }

    fn columns(&mut self, columns: &mut Vec<SelectItem>) {
        let commit = columns.iter().position(|column| column.to_string().contains("'synchronous_commit', 'off'"));
        if let Some(at) = commit.filter(|_| columns.len() > 1)
            && self.hit("wait for the flush of the commit")
        {
            columns.remove(at);
        }
        for (at, column) in columns.iter_mut().enumerate() {
            if let SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. } = column
                && Some(at) != commit
            {
                self.value(value);
            }
        }
    }

    fn tables(&mut self, tables: &mut [TableWithJoins]) {
        for table in tables {
            self.table(&mut table.relation);
            for join in &mut table.joins {
                self.table(&mut join.relation);
                if let JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) = &join.join_operator
                    && self.hit(format!("drop LEFT of JOIN {}", join.relation))
                {
                    join.join_operator = JoinOperator::Join(constraint.clone());
                }
                if let JoinOperator::Join(JoinConstraint::On(on))
                | JoinOperator::Inner(JoinConstraint::On(on))
                | JoinOperator::Left(JoinConstraint::On(on))
                | JoinOperator::LeftOuter(JoinConstraint::On(on)) = &mut join.join_operator
                {
                    let mut condition = Some(on.clone());
                    self.condition(&mut condition, "ON ");
                    *on = condition.unwrap_or_else(|| expressions::parse("true"));
                }
            }
        }
    }

    fn table(&mut self, table: &mut TableFactor) {
        if let TableFactor::Derived { subquery, .. } = table {
            self.query(subquery);
        }
    }

    fn insert(&mut self, insert: &mut Insert) {
        if let Some(source) = &mut insert.source {
            self.inserted(&mut insert.columns, source);
            self.query(source);
        }
        if let Some(OnInsert::OnConflict(conflict)) = &mut insert.on
            && let OnConflictAction::DoUpdate(update) = &mut conflict.action
        {
            if self.hit("DO NOTHING instead of DO UPDATE") {
                conflict.action = OnConflictAction::DoNothing;
            } else {
                for assignment in &mut update.assignments {
                    self.value(&mut assignment.value);
                }
                self.condition(&mut update.selection, "WHERE ");
            }
        }
        if let Some(on) = &insert.on
            && self.hit(format!("drop{on}"))
        {
            insert.on = None;
        }
        self.returned(&mut insert.returning);
    }

    /// Drops a column of an insert, which then has its default.
    fn inserted(&mut self, columns: &mut Vec<ObjectName>, source: &mut Query) {
        let SetExpr::Select(select) = source.body.as_mut() else { return };
        if columns.len() != select.projection.len() || columns.len() < 2 {
            return;
        }
        if let Some(at) = (0..columns.len()).find(|&at| self.hit(format!("do not insert {}", columns[at]))) {
            columns.remove(at);
            select.projection.remove(at);
        }
    }

    fn update(&mut self, update: &mut Update) {
        let table = match &update.table.relation {
            TableFactor::Table { alias: Some(alias), .. } => alias.name.to_string(),
            table => table.to_string(),
        };
        self.assignments(&mut update.assignments, &table);
        if let Some(UpdateTableFromKind::AfterSet(tables)) = &mut update.from {
            self.tables(tables);
        }
        self.condition(&mut update.selection, "WHERE ");
        self.returned(&mut update.returning);
    }

    /// Drops an assignment, so that the column keeps its value.
    fn assignments(&mut self, assignments: &mut [Assignment], table: &str) {
        for assignment in assignments {
            if self.hit(format!("do not set {assignment}"))
                && let AssignmentTarget::ColumnName(column) = &assignment.target
            {
                assignment.value = expressions::parse(&format!("{table}.{column}"));
                continue;
            }
            self.value(&mut assignment.value);
        }
    }

    fn delete(&mut self, delete: &mut Delete) {
        if let Some(tables) = &mut delete.using {
            self.tables(tables);
        }
        self.condition(&mut delete.selection, "WHERE ");
        self.returned(&mut delete.returning);
    }

    fn returned(&mut self, returning: &mut Option<Vec<SelectItem>>) {
        if let Some(columns) = returning {
            self.columns(columns);
        }
    }
}
