"""The wire: servicers, decoding, encoding and interceptors. The only part of the server that sees protobuf."""
