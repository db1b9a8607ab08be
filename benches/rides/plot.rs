//! The plot: rides per second and p99 by connections, the service beside pgbench. Bars start at 0, so that their
//! lengths can be compared; dark and light pages get their own colours.

use std::fmt::Write as _;
use std::path::Path;

use crate::report::{Machine, Measured, Point, grouped, write as write_file};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
/// Width and height of the bars' area in a panel.
const PANEL: (f64, f64) = (300.0, 200.0);
const TOP: f64 = 84.0;
const BAR: f64 = 32.0;

const STYLE: &str = "
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 14px; font-weight: 600; }
  .small { font-size: 11px; fill: #59636e; }
  .axis { stroke: #59636e; } .grid { stroke: #d1d9e0; }
  .ours { fill: #0969da; } .pgbench { fill: #9a6700; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .small { fill: #9198a1; }
    .axis { stroke: #9198a1; } .grid { stroke: #3d444d; }
    .ours { fill: #4493f8; } .pgbench { fill: #d29922; }
  }";

/// One of the two diagrams.
struct Panel {
    left: f64,
    title: &'static str,
    value: fn(&Measured) -> f64,
    label: fn(f64) -> String,
}

pub(crate) fn write(points: &[Point], machine: &Machine, path: &Path) {
    write_file(path, &svg(points, &machine.line));
}

fn svg(points: &[Point], machine: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Rides per second and 99th percentile of the wait, by connections, against pgbench\">\n\
         <style>{STYLE}\n</style>\n"
    );
    let panels = [
        Panel { left: 60.0, title: "rides per second", value: |m| m.per_second, label: grouped },
        Panel {
            left: 440.0,
            title: "p99 in ms, at 70 % of that rate",
            value: |m| m.p99_ms,
            label: |ms| if ms < 10.0 && ms > 0.0 { format!("{ms:.1}") } else { grouped(ms) },
        },
    ];
    legend(&mut svg);
    for panel in &panels {
        draw(&mut svg, panel, points);
    }
    text(&mut svg, 10.0, HEIGHT - 10.0, "small", "start", machine);
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    rect(svg, "ours", (60.0, 14.0), (12.0, 12.0), "");
    text(svg, 78.0, 24.0, "", "start", "POST /rides: HTTP, charge and all");
    rect(svg, "pgbench", (300.0, 14.0), (12.0, 12.0), "");
    text(svg, 318.0, 24.0, "", "start", "pgbench: the same two phases, statements alone");
}

fn draw(svg: &mut String, panel: &Panel, points: &[Point]) {
    let (width, height) = PANEL;
    let bottom = TOP + height;
    let most = points.iter().flat_map(|point| [(panel.value)(&point.ours), (panel.value)(&point.pgbench)]);
    let step = step(most.fold(0.0, f64::max));
    let scale = |value: f64| value / (4.0 * step) * height;
    text(svg, panel.left, TOP - 24.0, "title", "start", panel.title);
    for line in 0..=4 {
        let value = f64::from(line) * step;
        let (y, class) = (bottom - scale(value), if line == 0 { "axis" } else { "grid" });
        let right = panel.left + width;
        let _ =
            writeln!(svg, "<line class=\"{class}\" x1=\"{}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\"/>", panel.left);
        text(svg, panel.left - 6.0, y + 4.0, "small", "end", &(panel.label)(value));
    }
    let room = width / points.len() as f64;
    for (at, point) in points.iter().enumerate() {
        let middle = panel.left + room * (at as f64 + 0.5);
        for (class, x, measured) in
            [("ours", middle - BAR - 1.0, &point.ours), ("pgbench", middle + 1.0, &point.pgbench)]
        {
            let value = (panel.value)(measured);
            if !value.is_finite() {
                continue;
            }
            let tall = scale(value);
            let told = format!("{class} at {}: {}", point.connections, (panel.label)(value));
            rect(svg, class, (x, bottom - tall), (BAR, tall), &told);
            text(svg, x + BAR / 2.0, bottom - tall - 4.0, "small", "middle", &(panel.label)(value));
        }
        text(svg, middle, bottom + 18.0, "", "middle", &point.connections.to_string());
    }
    text(svg, panel.left + width / 2.0, bottom + 36.0, "small", "middle", "connections");
}

/// Returns a quarter of the axis: 1, 2, 2.5 or 5 times a power of ten, so that four of them are at least `most`.
fn step(most: f64) -> f64 {
    let least = (most / 4.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(least)
}

fn rect(svg: &mut String, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), told: &str) {
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
         <title>{told}</title></rect>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}
