//! RangeStream, which no etcd before 3.7 has: its parts, merged, must be what Range answers (R16).

use trilith_benches::Result;
use trilith_benches::client::{Client, path};
use trilith_proto::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};

use crate::compare::explain;
use crate::generate::Generator;
use crate::op::{Op, Response};

/// Asks both ways on one server; how many parts came.
pub(crate) async fn compare(client: &mut Client, generator: &mut Generator, count: usize) -> Result<usize> {
    let mut parts = 0;
    for _ in 0..count {
        // Sorts and filters are refused by a stream (R15).
        let request = RangeRequest {
            sort_order: 0,
            sort_target: 0,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
            ..generator.range()
        };
        let whole = Op::Range(request.clone()).send_unary(client).await?;
        let (merged, count) = merged(client, &request).await?;
        parts += count;
        if whole != merged {
            let text = explain(&whole, &merged).replace("  etcd", " Range").replace("  ours", "stream");
            return Err(format!("RangeStream differs from Range at {request:?}\n{text}").into());
        }
    }
    Ok(parts)
}

async fn merged(client: &mut Client, request: &RangeRequest) -> Result<(Response, usize)> {
    let mut stream = client.stream(path::RANGE_STREAM).await?;
    stream.send(request)?;
    stream.finish()?;
    let mut all = RangeResponse::default();
    let mut count = 0;
    loop {
        let part = match stream.next::<RangeStreamResponse>().await? {
            Ok(Some(part)) => part.range_response.unwrap_or_default(),
            Ok(None) => return Ok((Response::Range(all), count)),
            Err(answer) => {
                return Ok((Response::Error { code: answer.code, message: answer.message }, count));
            }
        };
        if all.header.is_some() {
            return Err(format!("a part after the last one, which has the header, at {request:?}").into());
        }
        count += 1;
        all.header = part.header;
        all.more = part.more;
        all.count = part.count;
        all.kvs.extend(part.kvs);
    }
}
