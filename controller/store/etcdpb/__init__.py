"""Generated stubs of the part of etcd's v3 API that the store uses (`rpc.proto`).

**Pure**: messages and stubs. Regenerate after a change of `rpc.proto`, from the project's root:

    python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \\
        --mypy_out=. --mypy_grpc_out=. controller/store/etcdpb/rpc.proto
"""
