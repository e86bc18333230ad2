//! Reading and writing rows.

use std::io::{self, IsTerminal, Read as _};
use std::process::ExitCode;

use anabranch_client::{Code, ReadOptions, Row, RowRange};
use anabranch_protocol::record::json::write_row;
use bytes::Bytes;

use super::Ended;
use super::arguments::{DeleteArguments, GetArguments, PutArguments, RowsArguments};
use super::failure::Failure;
use super::output::{self, Output};
use super::waiting::Waiting;

/// Rows asked for at once.
const PAGE: usize = 1000;

/// Prints a row's value, byte for byte.
pub(super) async fn get(arguments: GetArguments) -> Ended {
    let GetArguments {
        stream,
        key,
        token,
        target,
    } = arguments;
    let options = ReadOptions { token, wait: None };
    let handle = target.client()?.stream(&stream);
    let read = handle.row_with(key.as_bytes(), &options).await?;
    let Some(row) = read.value else {
        let message = format!("stream {stream} has no row {key:?}");
        return Err(Failure::not_found(Code::NoSuchRow, &message));
    };
    let output = Output::new(target.json);
    if target.json {
        output.line(&json_row(key.as_bytes(), &row.bytes))?;
    } else {
        output.bytes(&row.bytes)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a row.
pub(super) async fn put(arguments: PutArguments) -> Ended {
    let PutArguments {
        stream,
        key,
        value,
        ack,
        target,
    } = arguments;
    let value = match value {
        Some(value) if value != "-" => value.into_bytes(),
        _ => standard_input()?,
    };
    let client = target.client()?;
    let handle = client.stream(&stream);
    let put = handle.put_row_with(key.as_bytes(), value, &ack);
    let answer = Waiting::for_ack(&client, &ack).over(put).await?;
    wrote(&answer, target.json)
}

/// Deletes a row.
pub(super) async fn delete(arguments: DeleteArguments) -> Ended {
    let DeleteArguments {
        stream,
        key,
        ack,
        target,
    } = arguments;
    let client = target.client()?;
    let handle = client.stream(&stream);
    let delete = handle.delete_row_with(key.as_bytes(), &ack);
    let answer = Waiting::for_ack(&client, &ack).over(delete).await?;
    wrote(&answer, target.json)
}

fn wrote(answer: &anabranch_client::PublishAnswer, json: bool) -> Ended {
    let output = Output::new(json);
    if json {
        output.line(&serde_json::to_string(answer)?)?;
    }
    output.done(&[&answer.durability, &answer.token])?;
    output::hint(&format!("acknowledged from {}", answer.durability));
    Ok(ExitCode::SUCCESS)
}

fn standard_input() -> io::Result<Vec<u8>> {
    if io::stdin().is_terminal() {
        output::hint("reading the value; Ctrl-D ends");
    }
    let mut value = Vec::new();
    io::stdin().lock().read_to_end(&mut value)?;
    // `echo` ends its line; that is not part of the value.
    if value.ends_with(b"\n") {
        value.pop();
    }
    Ok(value)
}

/// Prints rows in key order.
pub(super) async fn list(arguments: RowsArguments) -> Ended {
    let handle = arguments.target.client()?.stream(&arguments.stream);
    let mut rows: Vec<Row> = Vec::new();
    let mut after = arguments.after.clone().map(Bytes::from);
    let mut token = arguments.token.clone();
    let more = loop {
        let wanted = (arguments.limit - rows.len()).min(PAGE);
        if wanted == 0 {
            break after.is_some();
        }
        let range = RowRange {
            prefix: arguments.prefix.clone().unwrap_or_default().into(),
            after,
            limit: u32::try_from(wanted).ok(),
        };
        // The pages after the first come from the same broker, which does not go back.
        let read = ReadOptions {
            token: token.take(),
            wait: None,
        };
        let page = handle.rows_with(&range, &read).await?.value;
        rows.extend(page.rows);
        after = page.next;
        if after.is_none() {
            break false;
        }
    };
    print(&rows, arguments.target.json)?;
    if let Some(last) = rows.last().filter(|_| more) {
        output::hint(&format!("more with: --after {}", output::text(&last.key)));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(rows: &[Row], json: bool) -> io::Result<()> {
    let output = Output::new(json);
    if json {
        let lines: Vec<_> = rows.iter().map(|it| json_row(&it.key, &it.value)).collect();
        return lines.iter().try_for_each(|line| output.line(line));
    }
    let fields = |row: &Row| vec![output::text(&row.key), output::text(&row.value)];
    let rows: Vec<_> = rows.iter().map(fields).collect();
    output.table(&["key", "value"], &rows, std::iter::empty())
}

fn json_row(key: &[u8], value: &[u8]) -> String {
    let mut line = Vec::new();
    write_row(&mut line, key, value);
    String::from_utf8_lossy(&line).into_owned()
}
