//! Conditions and values.

use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, InTarget, Query, Statement,
    UnaryOperator,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::Walk;

/// Parses this text as an expression.
pub(super) fn parse(text: &str) -> Expr {
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).expect("tokens");
    parser.parse_expr().expect("an expression of ours")
}

/// Parses this text as a query.
pub(super) fn parse_query(text: &str) -> Option<Query> {
    match Parser::parse_sql(&PostgreSqlDialect {}, text).ok()?.pop()? {
        Statement::Query(query) => Some(*query),
        _ => None,
    }
}

impl Walk {
    /// Each conjunct can be dropped, even the only one.
    pub(super) fn condition(&mut self, condition: &mut Option<Expr>, kind: &str) {
        let Some(whole) = condition.take() else { return };
        let mut conjuncts = operands(whole, &BinaryOperator::And);
        self.drop_one(&mut conjuncts, kind);
        for conjunct in &mut conjuncts {
            self.conjunct(conjunct);
        }
        *condition = conjuncts.into_iter().reduce(|left, right| binary(left, BinaryOperator::And, right));
    }

    /// A conjunct is not negated, because it can be dropped as a whole.
    pub(super) fn conjunct(&mut self, expr: &mut Expr) {
        match expr {
            Expr::IsNull(value) | Expr::IsNotNull(value) => self.value(value),
            Expr::Exists { subquery, .. } => self.query(subquery),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => self.conjunct(expr),
            _ => self.value(expr),
        }
    }

    fn equality(&mut self, left: &mut Expr, right: &mut Expr) {
        if !self.num_nulls(left, right) {
            self.value(left);
            self.value(right);
        }
    }

    /// Changes an expression of any value, booleans included.
    pub(super) fn value(&mut self, expr: &mut Expr) {
        match expr {
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => self.equality(left, right),
            Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. } => self.chain(expr),
            Expr::BinaryOp { .. } => self.operation(expr),
            Expr::UnaryOp { op: UnaryOperator::Not, .. }
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::Exists { .. } => self.negation(expr),
            Expr::Function(_) => self.function(expr),
            Expr::Case { .. } => self.case(expr),
            Expr::Between { .. } => self.between(expr),
            Expr::Nested(inner) | Expr::Cast { expr: inner, .. } | Expr::Extract { expr: inner, .. } => {
                self.value(inner);
            }
            Expr::AnyOp { left, right, .. }
            | Expr::AllOp { left, right, .. }
            | Expr::IsDistinctFrom(left, right)
            | Expr::IsNotDistinctFrom(left, right) => {
                self.value(left);
                self.value(right);
            }
            Expr::In { target: InTarget::List(items), .. } if items.len() > 1 => self.drop_one(items, "IN "),
            Expr::Array(array) if array.elem.len() > 1 => self.drop_one(&mut array.elem, "ARRAY "),
            Expr::Subquery(query) => self.query(query),
            Expr::Tuple(values) => values.iter_mut().for_each(|value| self.value(value)),
            _ => {}
        }
    }

    /// Changes `a AND b AND c` or `a OR b OR c`.
    fn chain(&mut self, expr: &mut Expr) {
        let Expr::BinaryOp { op, .. } = expr else { return };
        let op = op.clone();
        let mut parts = operands(expr.clone(), &op);
        self.drop_one(&mut parts, &format!("{op} "));
        parts.iter_mut().for_each(|part| self.value(part));
        *expr =
            parts.into_iter().reduce(|left, right| binary(left, op.clone(), right)).expect("two parts at least");
    }

    /// Changes a comparison at its edge, or drops an operand of arithmetic.
    fn operation(&mut self, expr: &mut Expr) {
        let text = expr.to_string();
        let Expr::BinaryOp { left, op, right } = expr else { return };
        let edge = match op {
            BinaryOperator::Lt => Some(BinaryOperator::LtEq),
            BinaryOperator::LtEq => Some(BinaryOperator::Lt),
            BinaryOperator::Gt => Some(BinaryOperator::GtEq),
            BinaryOperator::GtEq => Some(BinaryOperator::Gt),
            _ => None,
        };
        if let Some(edge) = edge
            && self.hit(format!("{edge} in {text}"))
        {
            *op = edge;
        }
        let arithmetic = matches!(
            op,
            BinaryOperator::Plus
                | BinaryOperator::Minus
                | BinaryOperator::Multiply
                | BinaryOperator::Divide
                | BinaryOperator::PGExp
        );
        self.value(left);
        self.value(right);
        if arithmetic {
            let (left, right) = (left.clone(), right.clone());
            if self.hit(format!("{left} instead of {text}")) {
                *expr = Expr::Nested(left);
            } else if self.hit(format!("{right} instead of {text}")) {
                *expr = Expr::Nested(right);
            }
        }
    }

    /// Turns a `NOT`, `IS NULL`, `IS NOT NULL` or `EXISTS` into its contrary.
    fn negation(&mut self, expr: &mut Expr) {
        if !self.hit(format!("the contrary of {expr}")) {
            self.conjunct(expr);
            return;
        }
        match expr {
            Expr::UnaryOp { expr: denied, .. } => *expr = (**denied).clone(),
            Expr::IsNull(value) => *expr = Expr::IsNotNull(value.clone()),
            Expr::IsNotNull(value) => *expr = Expr::IsNull(value.clone()),
            Expr::Exists { negated, .. } => *negated = !*negated,
            _ => {}
        }
    }

    /// `num_nulls(a, b) = 2` means that both are NULL, and is treated as a conjunction.
    fn num_nulls(&mut self, left: &mut Expr, right: &mut Expr) -> bool {
        let Some(args) = arguments(left, &["num_nulls"]) else { return false };
        if args.len() < 2 || right.to_string() != args.len().to_string() {
            return false;
        }
        self.drop_one(args, "num_nulls ");
        *right = parse(&args.len().to_string());
        true
    }

    fn function(&mut self, expr: &mut Expr) {
        for name in ["coalesce", "least", "greatest"] {
            if let Some(args) = arguments(expr, &[name])
                && args.len() > 1
            {
                self.drop_one(args, &format!("{name} "));
            }
        }
        let Expr::Function(function) = expr else { return };
        let FunctionArguments::List(list) = &mut function.args else { return };
        for arg in &mut list.args {
            if let FunctionArg::Unnamed(FunctionArgExpr::Expr(value))
            | FunctionArg::Named { arg: FunctionArgExpr::Expr(value), .. }
            | FunctionArg::ExprNamed { arg: FunctionArgExpr::Expr(value), .. } = arg
            {
                self.value(value);
            }
        }
    }

    fn case(&mut self, expr: &mut Expr) {
        let Expr::Case { conditions, else_result, .. } = expr else { return };
        if conditions.len() > 1 {
            self.drop_one(conditions, "");
        }
        if let Some(value) = else_result
            && self.hit(format!("drop ELSE {value}"))
        {
            *else_result = None;
        }
        for branch in conditions {
            self.value(&mut branch.condition);
            self.value(&mut branch.result);
        }
        if let Some(value) = else_result {
            self.value(value);
        }
    }

    fn between(&mut self, expr: &mut Expr) {
        let text = expr.to_string();
        let Expr::Between { expr: value, negated: false, low, high } = expr else { return };
        let (value, low, high) = (value.clone(), low.clone(), high.clone());
        if self.hit(format!("only >= in {text}")) {
            *expr = binary(*value, BinaryOperator::GtEq, *low);
        } else if self.hit(format!("only <= in {text}")) {
            *expr = binary(*value, BinaryOperator::LtEq, *high);
        }
    }
}

fn arguments<'a>(expr: &'a mut Expr, names: &[&str]) -> Option<&'a mut Vec<FunctionArg>> {
    let Expr::Function(function) = expr else { return None };
    let name = function.name.to_string().to_lowercase();
    match &mut function.args {
        FunctionArguments::List(list) if names.contains(&name.as_str()) => Some(&mut list.args),
        _ => None,
    }
}

fn operands(expr: Expr, of: &BinaryOperator) -> Vec<Expr> {
    match expr {
        Expr::BinaryOp { left, op, right } if op == *of => {
            let mut parts = operands(*left, of);
            parts.push(*right);
            parts
        }
        other => vec![other],
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}
