//! TCP connections to a broker.

use tokio::net::TcpStream;

use crate::address::Address;
use crate::error::Error;

pub(crate) async fn connect(address: &Address) -> Result<TcpStream, Error> {
    let failed = |error: std::io::Error| Error::Connect {
        address: address.to_string(),
        reason: error.to_string(),
    };
    let stream = TcpStream::connect(address.authority())
        .await
        .map_err(failed)?;
    // Small messages must not wait for the acknowledgement of those before.
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}
