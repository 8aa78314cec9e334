// swift-tools-version: 6.1

import PackageDescription

let package = Package(
    name: "Librorum",
    // What grpc-swift 2 asks for.
    platforms: [.macOS(.v15), .iOS(.v18)],
    products: [
        // macOS and Linux: the daemon of this machine, by the C library.
        .library(name: "Librorum", targets: ["Librorum"]),
        // iOS too: daemons of other machines, by gRPC.
        .library(name: "LibrorumRemote", targets: ["LibrorumRemote"]),
        // The frames of the local socket, for tools that look at them.
        .library(name: "LibrorumFrames", targets: ["LibrorumFrames"]),
    ],
    dependencies: [
        .package(url: "https://github.com/grpc/grpc-swift-2.git", from: "2.0.0"),
        .package(url: "https://github.com/grpc/grpc-swift-nio-transport.git", from: "2.0.0"),
        .package(url: "https://github.com/grpc/grpc-swift-protobuf.git", from: "2.0.0"),
        .package(url: "https://github.com/apple/swift-protobuf.git", from: "1.28.0"),
    ],
    targets: [
        .systemLibrary(name: "CLibrorum", pkgConfig: "librorum"),
        .target(name: "Librorum", dependencies: ["CLibrorum"]),
        .target(name: "LibrorumFrames"),
        .target(
            name: "LibrorumRemote",
            dependencies: [
                .product(name: "GRPCCore", package: "grpc-swift-2"),
                .product(name: "GRPCNIOTransportHTTP2", package: "grpc-swift-nio-transport"),
                .product(name: "GRPCProtobuf", package: "grpc-swift-protobuf"),
                .product(name: "SwiftProtobuf", package: "swift-protobuf"),
            ],
            // Needs protoc in PATH.
            plugins: [.plugin(name: "GRPCProtobufGenerator", package: "grpc-swift-protobuf")]
        ),
        .testTarget(name: "LibrorumTests", dependencies: ["Librorum"]),
        .testTarget(
            name: "LibrorumFramesTests",
            dependencies: ["LibrorumFrames"],
            resources: [.copy("Resources/golden-frames.json")]
        ),
    ]
)
