"""RabbitMQ: mails as messages in queues."""
