//! Reads how long an endpoint asks clients to wait.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

/// Reads the headers of a refusal: `retry-after-ms`, `Retry-After` (RFC 9110, 10.2.3: seconds or a date; gateways also
/// write fractions), else the `x-ratelimit-reset` family. A date is compared with the server's own clock if it sends
/// one.
pub(super) fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let get = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim());
    let now = get("date").and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    let milliseconds = || seconds(get("retry-after-ms")?).map(|wait| wait / 1000);
    let reset = |name: &str| until(get(name)?, now);
    milliseconds()
        .or_else(|| until(get("retry-after")?, now))
        .or_else(|| reset("x-ratelimit-reset"))
        .or_else(|| reset("x-ratelimit-reset-requests").max(reset("x-ratelimit-reset-tokens")))
        .or_else(|| reset("ratelimit-reset"))
}

/// Parses a number of seconds, a span such as `1m30.5s`, a date, or a time since the Unix epoch.
fn until(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(date) = httpdate::parse_http_date(text) {
        // A date in the past asks for no wait.
        return Some(date.duration_since(now).unwrap_or_default());
    }
    let Some(wait) = seconds(text) else { return span(text) };
    // No endpoint asks for a wait of a year. Such numbers are points in time, in seconds or milliseconds.
    let point = match wait.as_secs() {
        0..31_536_000 => return Some(wait),
        31_536_000..100_000_000_000 => wait,
        _ => wait / 1000,
    };
    Some((SystemTime::UNIX_EPOCH + point).duration_since(now).unwrap_or_default())
}

fn seconds(text: &str) -> Option<Duration> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number = text.parse::<f64>().ok().filter(|_| is_number)?;
    // The number may have more digits than a duration can hold.
    Duration::try_from_secs_f64(number).ok().filter(|wait| wait.as_secs() < 1 << 50)
}

/// Parses spans such as `6m0s`, `8.64s`, `20ms` or `1h2m`.
fn span(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let number = seconds(number)?;
        let part = match &unit[..end] {
            "h" => number.checked_mul(3600)?,
            "m" => number.checked_mul(60)?,
            "s" => number,
            "ms" => number / 1000,
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = &unit[end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(headers: &[(&'static str, &str)]) -> Option<f64> {
        let now = httpdate::parse_http_date("Sat, 28 Nov 2026 12:00:00 GMT").unwrap();
        let headers = headers
            .iter()
            .map(|(name, value)| (reqwest::header::HeaderName::from_static(name), value.parse().unwrap()));
        asked_wait(&headers.collect(), now).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn every_form_of_retry_after_is_understood() {
        for (value, seconds) in [
            ("7", 7.0),
            ("12.5", 12.5),
            ("Sat, 28 Nov 2026 12:00:40 GMT", 40.0),
            ("Saturday, 28-Nov-26 12:00:40 GMT", 40.0),
            ("Sat Nov 28 12:00:40 2026", 40.0),
            ("Sat, 28 Nov 2026 11:00:00 GMT", 0.0),
            ("1m30s", 90.0),
        ] {
            assert_eq!(wait(&[("retry-after", value)]), Some(seconds), "{value}");
        }
        for nothing in ["", "soon", "-3", "nan", "inf", "1e400", "1e3", "9999999999999999999999", "3q"] {
            assert_eq!(wait(&[("retry-after", nothing)]), None, "{nothing}");
        }
        assert_eq!(wait(&[]), None);
    }

    #[test]
    fn what_gateways_send_beside_it_is_understood_too() {
        assert_eq!(wait(&[("retry-after-ms", "1500"), ("retry-after", "2")]), Some(1.5));
        assert_eq!(wait(&[("x-ratelimit-reset-requests", "120ms"), ("x-ratelimit-reset-tokens", "6m0s")]), Some(360.0));
        // This is 12:00:30 since the epoch, in seconds and in milliseconds.
        assert_eq!(wait(&[("x-ratelimit-reset", "1795867230")]), Some(30.0));
        assert_eq!(wait(&[("x-ratelimit-reset", "1795867230000")]), Some(30.0));
        // The server's clock is an hour ahead of ours.
        let skewed = [("date", "Sat, 28 Nov 2026 13:00:00 GMT"), ("retry-after", "Sat, 28 Nov 2026 13:00:09 GMT")];
        assert_eq!(wait(&skewed), Some(9.0));
    }
}
