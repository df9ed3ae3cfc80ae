"""gRPC servicers: the only part of the server that sees protobuf."""
