// Go's lib/pq over TLS: with_pq N. TLS is Go's own, on goroutines that change threads.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"

	_ "github.com/lib/pq"
)

const insertText = "INSERT INTO tls_capture (id, client, note) VALUES ($1, $2, $3)"

var background = context.Background()

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func insert(connection *sql.Conn, name string, count int) {
	for number := 0; number < count; number++ {
		_, err := connection.ExecContext(background, insertText, number, "pq", fmt.Sprintf("pq note %d of %s", number, name))
		check(err)
	}
}

func read(connection *sql.Conn, name string, count int) {
	for number := 0; number < 5; number++ {
		text := fmt.Sprintf("SELECT n, '%s row ' || n FROM generate_series(1, %d) AS n", name, 3000+number)
		rows, err := connection.QueryContext(background, text)
		check(err)
		read := 0
		for rows.Next() {
			read++
		}
		check(rows.Err())
		if read != 3000+number {
			log.Fatalf("%d rows: %s", read, text)
		}
	}
	prepared, err := connection.PrepareContext(background, fmt.Sprintf("SELECT $1::int + 1, 'pq prepared by %s'", name))
	check(err)
	for number := 0; number < count; number++ {
		var next int
		var text string
		check(prepared.QueryRow(number).Scan(&next, &text))
	}
	check(prepared.Close())
}

func large(connection *sql.Conn, name string) {
	var body strings.Builder
	for number := 0; number < 128*1024; number++ {
		fmt.Fprintf(&body, "%s%06d,", name, number)
	}
	var length int
	check(connection.QueryRowContext(background, "SELECT length('"+body.String()+"')").Scan(&length))
	check(connection.QueryRowContext(background, "SELECT length($1::text)", body.String()).Scan(&length))
}

func fail(connection *sql.Conn, name string) {
	var ignored string
	if connection.QueryRowContext(background, "SELECT 1/0 AS pq_"+name).Scan(&ignored) == nil {
		log.Fatal("divided by zero")
	}
	transaction, err := connection.BeginTx(background, nil)
	check(err)
	_, err = transaction.Exec(insertText, -1, "pq", "rolled back by "+name)
	check(err)
	check(transaction.Rollback())
	check(connection.QueryRowContext(background, "SELECT 'pq after the rollback of "+name+"'").Scan(&ignored))
}

func session(database *sql.DB, name string, count int) {
	connection, err := database.Conn(background)
	check(err)
	insert(connection, name, count)
	read(connection, name, count)
	large(connection, name)
	fail(connection, name)
	check(connection.Close())
}

func main() {
	count, err := strconv.Atoi(os.Args[1])
	check(err)
	database, err := sql.Open("postgres", "")
	check(err)
	var sessions sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		sessions.Add(1)
		go func(name string) {
			defer sessions.Done()
			session(database, name, count)
		}(name)
	}
	sessions.Wait()
	check(database.Close())
}
