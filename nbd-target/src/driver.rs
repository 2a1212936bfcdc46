//! The kernel's NBD client, spoken to over generic netlink.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use crate::message::{Device, FAMILY, Message, Shape};
use crate::record::Record;

/// The driver. It carries a command out while the command is sent, so none overtakes another.
pub(crate) struct Driver {
    socket: Socket,
    family: Family,
}

/// What the kernel says of the driver's family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Family {
    id: u16,
    /// The highest attribute it knows.
    pub(crate) attribute_max: u32,
}

impl Driver {
    /// Finds the driver. To ask for it by name makes the kernel load it, where that is allowed.
    ///
    /// # Errors
    /// `NotFound` when it is not there.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let family = find_family(&socket)?;
        Ok(Driver { socket, family })
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// Makes the record's device. The driver keeps sockets of its own, those given may be closed.
    ///
    /// # Errors
    /// `ResourceBusy` when somebody has the device.
    pub(crate) fn connect(
        &self,
        record: &Record,
        shape: Shape,
        sockets: &[OwnedFd],
    ) -> io::Result<()> {
        self.call(Message::connect(record, shape, sockets))
            .map(drop)
    }

    /// Gives a device sockets in place of dead ones. Those too many are closed.
    pub(crate) fn reconfigure(&self, record: &Record, sockets: &[OwnedFd]) -> io::Result<()> {
        self.call(Message::reconfigure(record, sockets)).map(drop)
    }

    /// Gives a device another size.
    pub(crate) fn resize(&self, record: &Record, size: u64) -> io::Result<()> {
        self.call(Message::resize(record, size)).map(drop)
    }

    /// Ends a device; it is free when nobody has it open any more.
    pub(crate) fn disconnect(&self, device: u32) -> io::Result<()> {
        self.call(Message::disconnect(device)).map(drop)
    }

    /// All devices there are.
    pub(crate) fn devices(&self) -> io::Result<Vec<Device>> {
        let mut devices = Vec::new();
        for answer in self.call(Message::status())? {
            devices.extend(answer.devices().map_err(malformed)?);
        }
        Ok(devices)
    }

    fn call(&self, message: Message) -> io::Result<Vec<Message>> {
        let mut message = GenlMessage::from_payload(message);
        message.set_resolved_family_id(self.family.id);
        let answers = call(&self.socket, message)?;
        Ok(answers
            .into_iter()
            .map(|answer| answer.into_parts().1)
            .collect())
    }
}

fn find_family(socket: &Socket) -> io::Result<Family> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
    });
    let mut family = Family::default();
    for answer in call(socket, question)? {
        for attribute in answer.payload.nlas {
            match attribute {
                GenlCtrlAttrs::FamilyId(id) => family.id = id,
                GenlCtrlAttrs::MaxAttr(max) => family.attribute_max = max,
                _ => {}
            }
        }
    }
    if family.id == 0 {
        return Err(malformed("a family without a number"));
    }
    Ok(family)
}

/// Sends a command and collects what comes back, up to its acknowledgement.
fn call<M>(socket: &Socket, message: M) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<M>::deserialize(rest).map_err(malformed)?;
            let len = usize::try_from(answer.header.length).unwrap_or(usize::MAX);
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(answers),
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn malformed(cause: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause.to_string())
}
