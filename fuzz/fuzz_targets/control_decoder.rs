//! What is in a frame's meta: prefixes, fixed layouts, control messages, failures.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use librorum_rpc::Failure;
use librorum_rpc::frame::{Credit, Prefix, Transfer, flag};
use librorum_rpc::proto::v1;
use prost::Message;

/// Decodes, and what was decoded survives the wire.
fn message<M: Message + Default + PartialEq>(bytes: &Bytes) {
    if let Ok(decoded) = M::decode(bytes.clone()) {
        assert!(M::decode(decoded.encode_to_vec().as_slice()).is_ok_and(|again| again == decoded));
    }
}

fuzz_target!(|data: &[u8]| {
    let meta = Bytes::copy_from_slice(data);
    for flags in [0, flag::KEY] {
        let Ok((prefix, rest)) = Prefix::decode(&meta, flags) else { continue };
        let mut encoded = Vec::new();
        prefix.encode_to(&mut encoded);
        assert_eq!(encoded.len() + rest.len(), data.len());
        if let Ok(transfer) = Transfer::decode(&rest) {
            assert_eq!(transfer.encode(), rest[..]);
        }
        message::<v1::Hello>(&rest);
        message::<v1::StatRequest>(&rest);
        message::<v1::ListRequest>(&rest);
        message::<v1::SetAttributesRequest>(&rest);
        message::<v1::PutRequest>(&rest);
        message::<v1::OpenReadRequest>(&rest);
        message::<v1::OpenWriteRequest>(&rest);
        message::<v1::CommitRequest>(&rest);
        message::<v1::MountRequest>(&rest);
    }
    if let Ok(credit) = Credit::decode(&meta) {
        assert_eq!(Credit::decode(&credit.encode()), Ok(credit));
    }
    message::<v1::HelloReply>(&meta);
    message::<v1::StatResponse>(&meta);
    message::<v1::ListResponse>(&meta);
    message::<v1::OpenReadResponse>(&meta);
    message::<v1::OpenWriteResponse>(&meta);
    message::<v1::GoAway>(&meta);
    if let Ok(error) = v1::Error::decode(meta) {
        let failure = Failure::from_message(&error);
        assert_eq!(Failure::from_message(&failure.to_message()), failure);
    }
});
